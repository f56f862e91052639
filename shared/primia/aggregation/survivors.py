"""The consistency check (round 3), and what a node reveals after it (round 4: Unmasking).

*Members* are the nodes whose envelopes were delivered: they mask with one another. *Survivors* are
the members whose masked vectors the owner has. Every survivor signs (roster, members, survivors)
before any reveals a share, so an owner cannot have two nodes act on different survivor sets
(Bonawitz et al., CCS 2017, figure 4, round 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from primia.aggregation.envelopes import Kind
from primia.aggregation.errors import InconsistentRound
from primia.aggregation.keys import DIGEST_BYTES, Verify
from primia.aggregation.roster import Roster
from primia.aggregation.terms import MAX_NODES, read_node
from primia.codec import Reader, Writer
from primia.errors import MalformedMessage
from primia.sharing import SHARE_BYTES, Share

_SIGNED = b"primia/aggregation/survivors/1\0"
_MAGIC = b"PGR1"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Who takes part and who remains; both sorted. Build it with ``of``."""

    members: tuple[str, ...]
    survivors: tuple[str, ...]

    @classmethod
    def of(cls, roster: Roster, members: Iterable[str], survivors: Iterable[str]) -> Outcome:
        """Raises ``BelowThreshold`` or ``InconsistentRound``."""
        taking_part = roster.subset(members, "nodes shared their keys")
        remaining = roster.subset(survivors, "nodes delivered their update")
        if not set(remaining) <= set(taking_part):
            raise InconsistentRound("A survivor is named that never shared its keys.")
        roster.check_spread(taking_part, set(remaining))
        return cls(taking_part, remaining)

    @property
    def dropped(self) -> tuple[str, ...]:
        return tuple(node for node in self.members if node not in self.survivors)

    def kind(self, dealer: str) -> Kind:
        """The one kind of share that may be revealed of a dealer."""
        return Kind.SELF_MASK if dealer in self.survivors else Kind.MASKING_KEY

    def signed_bytes(self, roster: Roster) -> bytes:
        writer = Writer().raw(_SIGNED).raw(roster.context)
        for group in (self.members, self.survivors):
            writer.u16(len(group))
            for node in group:
                writer.text(node)
        return writer.take()

    def confirmed_by(
        self, roster: Roster, confirmations: Mapping[str, bytes], verify: Verify
    ) -> tuple[str, ...]:
        """The survivors whose signature over this very outcome is among the confirmations."""
        signed = self.signed_bytes(roster)
        return tuple(
            node
            for node in self.survivors
            if node in confirmations and verify(node, signed, confirmations[node])
        )


@dataclass(frozen=True, slots=True)
class Reveal:
    """A node's shares of every member's secret: dealer -> (kind, share)."""

    context: bytes
    shares: Mapping[str, tuple[Kind, Share]]

    def to_bytes(self) -> bytes:
        """38 bytes, and at most 103 a member."""
        writer = Writer().raw(_MAGIC).raw(self.context).u16(len(self.shares))
        for dealer, (kind, share) in sorted(self.shares.items()):
            writer.text(dealer).u8(kind).raw(share.to_bytes())
        return writer.take()

    @classmethod
    def parse(cls, data: bytes) -> Reveal:
        """Raises ``MalformedMessage``, also for two entries of one dealer."""
        reader = Reader(data)
        reader.expect(_MAGIC, "a reveal of shares")
        context = reader.raw(DIGEST_BYTES)
        count = reader.u16()
        if count > MAX_NODES:
            raise MalformedMessage(f"A reveal of {count} shares is not accepted.")
        shares = dict(_read_entry(reader) for _ in range(count))
        reader.finish()
        if len(shares) != count:
            raise MalformedMessage("A reveal names one dealer twice.")
        return cls(context, shares)


def _read_entry(reader: Reader) -> tuple[str, tuple[Kind, Share]]:
    dealer, kind = read_node(reader), reader.u8()
    if kind not in list(Kind):
        raise MalformedMessage(f"A share of kind {kind} is not known.")
    return dealer, (Kind(kind), Share.from_bytes(reader.raw(SHARE_BYTES)))
