"""Rules of the dealer's stock: states of a deal, resumable downloads, how much may be held.

A deal is correlated randomness for one inference of one plan and batch: half 0 for the model
owner, half 1 for the data node that it is promised to. No half is handed out to two parties, no
half is handed out twice, and what broke is never handed out again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from primia.errors import Conflict, Forbidden, InvalidInput, Spent
from primia.mpc.material import PARTS, half_size, part_size
from primia.mpc.plan import Plan


class DealState(StrEnum):
    """``making``: for the stock. ``promised``: being made for a node that waits."""

    MAKING = "making"
    PROMISED = "promised"
    READY = "ready"
    RESERVED = "reserved"
    SPENT = "spent"
    FAILED = "failed"


class Event(StrEnum):
    DEALT = "dealt"
    CLAIM = "claim"
    FINISH = "finish"
    BURN = "burn"
    EXPIRE = "expire"
    GIVE_UP = "give up"


TRANSITIONS = MappingProxyType(
    {
        (DealState.MAKING, Event.DEALT): DealState.READY,
        (DealState.MAKING, Event.CLAIM): DealState.PROMISED,
        (DealState.MAKING, Event.BURN): DealState.SPENT,
        (DealState.MAKING, Event.EXPIRE): DealState.SPENT,
        (DealState.MAKING, Event.GIVE_UP): DealState.FAILED,
        (DealState.PROMISED, Event.DEALT): DealState.RESERVED,
        (DealState.PROMISED, Event.BURN): DealState.SPENT,
        (DealState.PROMISED, Event.EXPIRE): DealState.SPENT,
        (DealState.PROMISED, Event.GIVE_UP): DealState.FAILED,
        (DealState.READY, Event.CLAIM): DealState.RESERVED,
        (DealState.READY, Event.BURN): DealState.SPENT,
        (DealState.READY, Event.EXPIRE): DealState.SPENT,
        (DealState.RESERVED, Event.FINISH): DealState.SPENT,
        (DealState.RESERVED, Event.BURN): DealState.SPENT,
        (DealState.RESERVED, Event.EXPIRE): DealState.SPENT,
    }
)

OPEN = (DealState.MAKING, DealState.PROMISED, DealState.READY, DealState.RESERVED)
BEING_MADE = (DealState.MAKING, DealState.PROMISED)
ENDED = (DealState.SPENT, DealState.FAILED)


def step(state: DealState, event: Event) -> DealState:
    """Raises Spent from an ended state, Conflict where the event does not fit."""
    following = TRANSITIONS.get((state, event))
    if following is None and state in ENDED:
        raise Spent("This deal has been used up or burned.", hint="Ask for a new deal.")
    if following is None:
        raise Conflict(f"A deal that is {state} cannot take the event {event!r}.")
    return following


@dataclass(frozen=True)
class Sizes:
    """Bytes of a deal: of each party's half, and on the dealer's disk (the keys lie there once)."""

    half0: int
    half1: int
    disk: int

    @classmethod
    def of(cls, plan: Plan, batch: int) -> Sizes:
        disk = sum(part_size(plan, batch, part) for part in PARTS)
        return cls(half_size(plan, batch, 0), half_size(plan, batch, 1), disk)


@dataclass(frozen=True)
class Parties:
    owner: str
    node: str | None

    def index(self, caller: str) -> int:
        """0 for the plan's owner, 1 for the node that the deal is reserved for."""
        if caller == self.owner:
            return 0
        if self.node is not None and caller == self.node:
            return 1
        raise Forbidden("This deal belongs to other parties.")


def parse_range(header: str | None, size: int) -> int:
    """The first byte that is asked for: ``bytes=N-`` alone is accepted, absent means 0."""
    if header is None:
        return 0
    unit, _, first = header.partition("=")
    digits = first.removesuffix("-")
    if unit.strip() != "bytes" or not first.endswith("-") or not _is_number(digits):
        raise InvalidInput(
            "The Range header is not of the form 'bytes=N-'.",
            hint="Resume at the number of bytes that you hold.",
        )
    start = int(digits)
    if start >= size:
        raise InvalidInput(f"The range starts at {start}, the half has {size} bytes.")
    return start


def _is_number(text: str) -> bool:
    return 0 < len(text) <= 15 and text.isascii() and text.isdigit()


def check_download(start: int, last_start: int | None, received: bool) -> None:
    """A half is handed out once: what follows the first request must resume further on."""
    if received:
        raise Spent("This half has been received.", hint="Ask for a new deal.")
    if last_start is None:
        if start != 0:
            raise Conflict("The first download of a half starts at its first byte.")
    elif start <= last_start:
        raise Spent(
            f"Bytes from {start} on have been handed out; a resumed download only goes forward.",
            hint="Burn this deal and ask for a new one.",
        )


def threads_of(waits: bool, threads: int, at_once: int) -> int:
    """Of one deal: all where an image waits for it, else what is left to it of as many as are made
    at once; together they fill the machine best with a thread each."""
    return threads if waits else max(1, threads // at_once)


def missing_stock(stock: int, ready: int, making: int) -> int:
    return max(0, stock - ready - making)


def affordable(
    wanted: int,
    deal_bytes: int,
    held_bytes: int,
    cap: int,
    free_bytes: int,
    share: float = 1,
) -> int:
    """How many of ``wanted`` deals fit under the cap on bytes held and in the free disk space.

    ``share``: of both together that may be taken; what is made ahead leaves the rest to images
    that wait.
    """
    room = int(share * min(cap, held_bytes + free_bytes)) - held_bytes
    return max(0, min(wanted, room // max(1, deal_bytes)))


def check_fits(deal_bytes: int, cap: int) -> None:
    """Raises InvalidInput for a deal that will never fit."""
    if deal_bytes > cap:
        raise InvalidInput(
            f"The deal would take {deal_bytes / 1e9:.2f} GB; this crypto provider holds "
            f"{cap / 1e9:.2f} GB at most.",
            hint="Ask for fewer images at a time, or have PRIMIA_MAX_STOCK_BYTES raised there.",
        )
