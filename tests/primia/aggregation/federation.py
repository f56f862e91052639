"""All parties of a round in one process; every message and every state crosses as bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from primia.aggregation import client, quantise, server
from primia.aggregation.roster import Roster
from primia.aggregation.state import NodeState
from primia.aggregation.survivors import Outcome
from primia.aggregation.terms import Assumed, Groups, RoundId, least_threshold
from primia.prg import Seed

RUN = bytes(range(16))
FIRST = RoundId(RUN, 1)
GROUPS = Groups(parameters=37, buffers=6)
Update = NDArray[np.float32]


@cache
def identity(node: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(node.encode().ljust(32, b"\0"))


def verify(node: str, message: bytes, signature: bytes) -> bool:
    try:
        identity(node).public_key().verify(signature, message)
    except InvalidSignature:
        return False
    return True


def names(count: int) -> tuple[str, ...]:
    return tuple(f"site-{index:02d}" for index in range(count))


def random_update(seed: int, groups: Groups = GROUPS, scale: float = 0.1) -> Update:
    generator = np.random.default_rng(seed)  # seeded test data
    values = generator.normal(scale=scale, size=groups.size)
    values[groups.parameters :] *= 30  # buffers move by more than parameters
    return values.astype(np.float32)


def frozen_federation() -> Federation:
    """Three nodes, everything about which is fixed, for frozen vectors."""
    values = np.arange(GROUPS.size, dtype=np.float32) / 64 - np.float32(0.25)
    return Federation.of(3, updates={n: values * np.float32(at) for at, n in enumerate(names(3))})


def weighted_mean(updates: Sequence[Update], samples: Sequence[int]) -> NDArray[np.float64]:
    pairs = zip(updates, samples, strict=True)
    return sum(n * u.astype(np.float64) for u, n in pairs) / sum(samples)


@dataclass(frozen=True)
class Federation:
    """The state of everybody in a round; each method returns the federation after a step."""

    updates: Mapping[str, Update]
    samples: Mapping[str, int]
    threshold: int
    round_id: RoundId = FIRST
    groups: Groups = GROUPS
    seeds: Mapping[str, Seed] = field(default_factory=dict)
    states: Mapping[str, NodeState] = field(default_factory=dict)
    advertisements: Mapping[str, bytes] = field(default_factory=dict)
    envelopes: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    vectors: Mapping[str, NDArray[np.uint32]] = field(default_factory=dict)
    confirmations: Mapping[str, bytes] = field(default_factory=dict)
    reveals: Mapping[str, bytes] = field(default_factory=dict)
    assumed: Assumed | None = None

    @classmethod
    def of(cls, count: int, **changes: Any) -> Federation:
        nodes = names(count)
        return cls(
            **{
                "updates": {node: random_update(at) for at, node in enumerate(nodes)},
                "samples": {node: 17 + 40 * at for at, node in enumerate(nodes)},
                "threshold": least_threshold(count, changes.get("assumed")),
                "seeds": {node: Seed(bytes([at + 1]) * 16) for at, node in enumerate(nodes)},
                **changes,
            }
        )

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(self.updates)

    @property
    def roster(self) -> Roster:
        return Roster.of(self.advertisements, verify)

    @property
    def outcome(self) -> Outcome:
        return Outcome.of(self.roster, self.envelopes, self.vectors)

    def advertise(self, nodes: Iterable[str] | None = None) -> Federation:
        answers = {
            node: client.advertise(
                self.seeds[node],
                round_id=self.round_id,
                node=node,
                threshold=self.threshold,
                samples=self.samples[node],
                groups=self.groups,
                exponents=quantise.exponents(self.updates[node], self.groups),
                sign=identity(node).sign,
                assumed=self.assumed,
            )
            for node in self._all(nodes, self.nodes)
        }
        return self._after("advertisements", answers)

    def share(self, nodes: Iterable[str] | None = None) -> Federation:
        answers = {
            node: client.share(self.states[node], self.advertisements, verify)
            for node in self._all(nodes, self.advertisements)
        }
        for node, (_, envelopes) in answers.items():
            server.check_envelopes(self.roster, node, envelopes)
        return self._after("envelopes", answers)

    def mask(self, nodes: Iterable[str] | None = None) -> Federation:
        answers = {
            node: client.mask(self.states[node], self.inbox(node), self.updates[node])
            for node in self._all(nodes, self.envelopes)
        }
        return self._after("vectors", answers)

    def confirm(self, nodes: Iterable[str] | None = None) -> Federation:
        answers = {
            node: client.confirm(
                self.states[node], self.vectors, identity(node).sign, self.envelopes
            )
            for node in self._all(nodes, self.vectors)
        }
        for node, (_, signature) in answers.items():
            server.check_confirmation(self.roster, self.outcome, node, signature, verify)
        return self._after("confirmations", answers)

    def reveal(self, nodes: Iterable[str] | None = None) -> Federation:
        answers = {
            node: client.reveal(
                self.states[node], self.vectors, self.confirmations, verify, self.envelopes
            )
            for node in self._all(nodes, self.confirmations)
        }
        return self._after("reveals", answers)

    def sum(self) -> NDArray[np.uint32]:
        total = server.RunningSum(self.groups.size)
        for vector in self.vectors.values():
            total.add(vector.tobytes())
        return total.total

    def open(self) -> Update:
        total, roster, outcome = self.sum(), self.roster, self.outcome
        server.unmask(total, roster, self.envelopes, outcome, self.reveals)
        return server.mean(total, roster, outcome)

    def whole(self) -> Federation:
        """A round in which nobody drops out, up to the reveals."""
        return self.advertise().share().mask().confirm().reveal()

    def inbox(self, node: str) -> dict[str, bytes]:
        return server.inbox(self.envelopes, node)

    def expected(self) -> NDArray[np.float64]:
        """The plain weighted mean over the survivors."""
        survivors = list(self.vectors)
        return weighted_mean(
            [self.updates[node] for node in survivors], [self.samples[node] for node in survivors]
        )

    def bounds(self) -> NDArray[np.float64]:
        """The step of each value, and the rounding of the float32 result."""
        roster, survivors = self.roster, list(self.vectors)
        bounds = np.empty(self.groups.size)
        for (_, span), exponent in zip(self.groups.spans(), roster.exponents, strict=True):
            step = quantise.step(exponent, len(survivors), roster.weight(survivors))
            bounds[span] = step + 2.0 ** (exponent - 25)
        return bounds

    def _all(self, nodes: Iterable[str] | None, default: Iterable[str]) -> tuple[str, ...]:
        return tuple(default if nodes is None else nodes)

    def _after(self, name: str, answers: Mapping[str, tuple[NodeState, Any]]) -> Federation:
        states = {n: NodeState.from_bytes(s.to_bytes()) for n, (s, _) in answers.items()}
        messages = {node: message for node, (_, message) in answers.items()}
        return replace(self, states={**self.states, **states}, **{name: messages})
