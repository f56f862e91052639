"""The roster: the advertisements of all nodes of a round, the same for everyone.

Its digest, the *context*, is bound into every mask, envelope, commitment and signature that
follows: nodes that were shown different rosters agree on nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from primia.aggregation.errors import BelowThreshold, InconsistentRound, InvalidSignature
from primia.aggregation.graph import Graph, degree
from primia.aggregation.keys import Advertisement, Verify
from primia.aggregation.quantise import Exponents, largest_exponents
from primia.aggregation.terms import (
    MAX_NODES,
    MIN_NODES,
    Assumed,
    Groups,
    RoundId,
    least_threshold,
)
from primia.codec import Writer
from primia.errors import MalformedMessage


@dataclass(frozen=True)
class Roster:
    """Advertisements in the order of the nodes' names. Build it with ``of``, never directly."""

    advertisements: tuple[Advertisement, ...]

    @classmethod
    def of(cls, advertisements: Mapping[str, bytes], verify: Verify) -> Roster:
        """Parse and check everything that makes them one round.

        Raises ``MalformedMessage``, ``InvalidSignature`` (naming the node), ``BelowThreshold`` if
        there are fewer than two nodes or than the threshold, and ``InconsistentRound`` if round,
        threshold or groups differ, the threshold is not a majority, or two keys are the same.
        """
        if len(advertisements) > MAX_NODES:
            raise MalformedMessage(f"A roster of {len(advertisements)} nodes is not accepted.")
        parsed = []
        for node, data in sorted(advertisements.items()):
            advertisement = Advertisement.parse(data)
            if advertisement.node != node:
                raise InconsistentRound(f"The advertisement filed under {node} is another node's.")
            check_signature(advertisement, verify)
            parsed.append(advertisement)
        roster = cls(tuple(parsed))
        roster._check()
        return roster

    def _check(self) -> None:
        if len(self.advertisements) < MIN_NODES:
            raise BelowThreshold("Secure aggregation needs at least two nodes.")
        first = self.advertisements[0]
        for other in self.advertisements[1:]:
            if _terms(other) != _terms(first):
                raise InconsistentRound(
                    f"{first.node} and {other.node} advertise different rounds, thresholds, "
                    "graphs or vector sizes."
                )
        if self.threshold > len(self.nodes):
            raise BelowThreshold(
                f"{len(self.nodes)} nodes advertised keys; the threshold is {self.threshold}."
            )
        if self.threshold < least_threshold(len(self.nodes), self.assumed):
            colluding = f", {self.assumed.colluding} of them colluding" if self.assumed else ""
            raise InconsistentRound(
                f"A threshold of {self.threshold} is no majority of {len(self.nodes)} "
                f"nodes{colluding}."
            )
        self._check_keys()

    def _check_keys(self) -> None:
        seen: dict[bytes, str] = {}
        for entry in self.advertisements:
            for key in (entry.encryption_key, entry.masking_key):
                if key in seen:
                    raise InconsistentRound(f"{seen[key]} and {entry.node} advertise the same key.")
                seen[key] = entry.node

    @cached_property
    def context(self) -> bytes:
        """32 bytes: SHA-256 over all advertisements, signatures included."""
        writer = Writer().raw(b"primia/aggregation/roster/1\0").u32(len(self.advertisements))
        for entry in self.advertisements:
            writer.blob(entry.to_bytes())
        return sha256(writer.take()).digest()

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        return tuple(entry.node for entry in self.advertisements)

    def entry(self, node: str) -> Advertisement:
        """Raises ``InconsistentRound`` for a node that is not in the roster."""
        return self.advertisements[self.position(node)]

    def position(self, node: str) -> int:
        """0-based; the node's point in Shamir's sharing is one more."""
        try:
            return self.nodes.index(node)
        except ValueError:
            raise InconsistentRound(f"{node} is not in the round's roster.") from None

    @property
    def round_id(self) -> RoundId:
        return self.advertisements[0].round_id

    @property
    def threshold(self) -> int:
        return self.advertisements[0].threshold

    @property
    def assumed(self) -> Assumed | None:
        return self.advertisements[0].assumed

    @cached_property
    def graph(self) -> Graph:
        made = degree(len(self.nodes), self.assumed) if self.assumed else None
        return Graph(self.nodes, self.context, made)

    @property
    def share_threshold(self) -> int:
        """How many shares give a node's secret: in a sparse graph fewer than ``threshold``."""
        sparse = self.graph.degree
        return self.threshold if sparse is None else sparse.threshold

    @property
    def groups(self) -> Groups:
        return self.advertisements[0].groups

    @cached_property
    def exponents(self) -> Exponents:
        return largest_exponents([entry.exponents for entry in self.advertisements])

    @cached_property
    def samples(self) -> int:
        return sum(entry.samples for entry in self.advertisements)

    def weight(self, survivors: Iterable[str]) -> float:
        """The survivors' part of the round's samples, in (0, 1]."""
        return sum(self.entry(node).samples for node in survivors) / self.samples

    def subset(self, nodes: Iterable[str], what: str) -> tuple[str, ...]:
        """The nodes sorted, if they are distinct, of the roster and at least the threshold.

        Raises ``InconsistentRound`` or ``BelowThreshold``; ``what`` names the set in the message.
        """
        ordered = tuple(sorted(nodes))
        if len(set(ordered)) != len(ordered) or not set(ordered) <= set(self.nodes):
            raise InconsistentRound(f"The {what} are not distinct nodes of the round's roster.")
        if len(ordered) < self.threshold:
            raise BelowThreshold(f"Only {len(ordered)} {what}; the threshold is {self.threshold}.")
        return ordered

    def neighbourhood(self, node: str, dealers: Iterable[str]) -> tuple[str, ...]:
        """The dealers that the node has envelopes from, sorted, itself among its neighbours.

        Raises ``InconsistentRound`` or ``BelowThreshold``.
        """
        if self.graph.degree is None:
            return self.subset(dealers, "nodes shared their keys")
        ordered = tuple(sorted(dealers))
        if self.graph.near(node, ordered) != ordered:
            raise InconsistentRound(f"{node} has envelopes from others than its neighbours.")
        if len(ordered) < self.share_threshold:
            raise BelowThreshold(
                f"Only {len(ordered)} of {node}'s neighbours shared their keys; "
                f"{self.share_threshold} are needed."
            )
        return ordered

    def check_spread(self, members: Iterable[str], survivors: Collection[str]) -> None:
        """Raises ``BelowThreshold`` unless a sparse graph has survivors everywhere: enough along
        the ring to stay connected, and around each member to give its secret."""
        sparse = self.graph.degree
        if sparse is None:
            return
        if self.graph.least_spread(survivors) < sparse.spread:
            raise BelowThreshold(
                f"Fewer than {sparse.spread} survivors among {sparse.window} nodes in a row: the "
                "graph of those that remain might fall apart."
            )
        for node in members:
            if len(self.graph.near(node, survivors)) < sparse.threshold:
                raise BelowThreshold(
                    f"Fewer than {sparse.threshold} of {node}'s neighbours delivered their update."
                )


def _terms(entry: Advertisement) -> tuple[object, ...]:
    return entry.round_id, entry.threshold, entry.assumed, entry.groups


def check_signature(advertisement: Advertisement, verify: Verify) -> None:
    """Raises ``InvalidSignature``."""
    signed = advertisement.signed_bytes()
    if not verify(advertisement.node, signed, advertisement.signature):
        raise InvalidSignature(f"{advertisement.node}'s advertisement is not signed by it.")
