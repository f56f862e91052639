"""A node's state in a round: what it must remember between messages, and the order of the steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType

from primia.aggregation.envelopes import Holding
from primia.aggregation.keys import DIGEST_BYTES, Advertisement, RoundSecrets
from primia.aggregation.roster import Roster
from primia.aggregation.terms import MAX_NODES, read_node
from primia.codec import Reader, Writer
from primia.errors import MalformedMessage, UnexpectedMessage
from primia.prg import SEED_BYTES, Seed
from primia.sharing import SHARE_BYTES


class Phase(IntEnum):
    ADVERTISED = 0
    SHARED = 1
    MASKED = 2
    CONFIRMED = 3
    REVEALED = 4


class Step(IntEnum):
    SHARE = 0
    MASK = 1
    CONFIRM = 2
    REVEAL = 3


TRANSITIONS: Mapping[tuple[Phase, Step], Phase] = MappingProxyType(
    {
        (Phase.ADVERTISED, Step.SHARE): Phase.SHARED,
        (Phase.SHARED, Step.MASK): Phase.MASKED,
        (Phase.MASKED, Step.CONFIRM): Phase.CONFIRMED,
        (Phase.CONFIRMED, Step.REVEAL): Phase.REVEALED,
    }
)

_MAGIC = b"PGN1"
_MAX_ADVERTISEMENT = 512


@dataclass(frozen=True)
class NodeState:
    """Secret: the round's seed and the shares held of others. Prints phase and node only."""

    secrets: RoundSecrets = field(repr=False)
    advertisement: Advertisement = field(repr=False)
    phase: Phase = Phase.ADVERTISED
    requests: tuple[bytes, ...] = field(default=(), repr=False)
    roster: Roster | None = field(default=None, repr=False)
    holdings: Mapping[str, Holding] = field(default_factory=dict, repr=False)
    survivors: tuple[str, ...] = field(default=(), repr=False)

    @property
    def node(self) -> str:
        return self.advertisement.node

    def expect(self, step: Step) -> None:
        """Raises ``UnexpectedMessage`` unless ``step`` is the next one or was answered before."""
        if step >= len(self.requests) and (self.phase, step) not in TRANSITIONS:
            raise UnexpectedMessage(
                f"{self.node} cannot {step.name.lower()} now: it has {self.phase.name.lower()}."
            )

    def advance(self, step: Step, request: bytes) -> Phase:
        """The phase after ``step``; the same phase for a request that was answered before.

        ``request`` is the digest of what is asked for. Raises ``UnexpectedMessage`` if the step is
        out of order or another request was answered.
        """
        self.expect(step)
        if step >= len(self.requests):
            return TRANSITIONS[self.phase, step]
        if self.requests[step] != request:
            raise UnexpectedMessage(
                f"{self.node} has answered another {step.name.lower()} request in this round.",
                hint="A node answers each step once; the same request gets the same answer.",
            )
        return self.phase

    def to_bytes(self) -> bytes:
        """For storage, to be encrypted at rest; about 600 bytes a node of the roster."""
        writer = Writer().raw(_MAGIC).u8(self.phase).raw(self.secrets.seed.reveal())
        writer.blob(self.advertisement.to_bytes())
        for request in self.requests:
            writer.raw(request)
        roster = self.roster.advertisements if self.roster else ()
        writer.u16(len(roster))
        for entry in roster:
            writer.blob(entry.to_bytes())
        writer.u16(len(self.holdings))
        for dealer, holding in sorted(self.holdings.items()):
            writer.text(dealer).raw(holding.to_bytes())
        writer.u16(len(self.survivors))
        for node in self.survivors:
            writer.text(node)
        return writer.take()

    @classmethod
    def from_bytes(cls, data: bytes) -> NodeState:
        """Raises ``MalformedMessage``. Signatures were verified before the state was stored."""
        reader = Reader(data)
        reader.expect(_MAGIC, "a node's state of secure aggregation")
        phase = reader.u8()
        if phase not in list(Phase):
            raise MalformedMessage(f"Phase {phase} is not known.")
        secrets = RoundSecrets(Seed(reader.raw(SEED_BYTES)))
        own = Advertisement.parse(reader.blob(_MAX_ADVERTISEMENT))
        requests = tuple(reader.raw(DIGEST_BYTES) for _ in range(phase))
        entries = tuple(
            Advertisement.parse(reader.blob(_MAX_ADVERTISEMENT)) for _ in range(_count(reader))
        )
        holdings = {
            read_node(reader): Holding.from_bytes(reader.raw(2 * SHARE_BYTES))
            for _ in range(_count(reader))
        }
        survivors = tuple(read_node(reader) for _ in range(_count(reader)))
        reader.finish()
        roster = Roster(entries) if entries else None
        return cls(secrets, own, Phase(phase), requests, roster, holdings, survivors)


def _count(reader: Reader) -> int:
    count = reader.u16()
    if count > MAX_NODES:
        raise MalformedMessage(f"{count} nodes are more than a round may have.")
    return count
