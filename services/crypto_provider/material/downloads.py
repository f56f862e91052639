"""Handing out halves: each once, in one go or resumed further on; cleared when both have come."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from primia.chassis.context import Context
from primia.chassis.db import after_commit
from primia.errors import Conflict, Spent
from primia.mpc.material import PARTS
from services.crypto_provider.material import store
from services.crypto_provider.material.domain import (
    BEING_MADE,
    DealState,
    Event,
    check_download,
    parse_range,
)
from services.crypto_provider.material.tasks import part_path, remove_parts

_PIECE = 1 << 20
_BEING_MADE = tuple(state.value for state in BEING_MADE)


@dataclass(frozen=True)
class Download:
    """``files``: the two parts of the half, one after the other."""

    files: tuple[Path, Path]
    start: int
    size: int

    def pieces(self) -> Iterator[bytes]:
        skip = self.start
        for path in self.files:
            with path.open("rb") as file:
                length = os.fstat(file.fileno()).st_size
                file.seek(min(skip, length))
                skip = max(0, skip - length)
                while piece := file.read(_PIECE):
                    yield piece


def begin(ctx: Context, deal_id: str, caller: str, range_header: str | None) -> Download:
    """Commit that these bytes are handed out, before the first of them leaves."""
    with ctx.db.session() as session:
        row = store.deal(session, deal_id, lock=True)
        party = row.parties().index(caller)
        size = _size(row, party)
        start = parse_range(range_header, size)
        check_download(start, row.start_of(party), row.received_by(party))
        store.record_start(row, party, start)
    files = part_path(ctx, deal_id, PARTS[party]), part_path(ctx, deal_id, "common")
    return Download(files, start, size)


def _size(row: store.DealRow, party: int) -> int:
    if row.state in _BEING_MADE:
        raise Conflict("The deal is still being made.", hint="Ask again when it is reserved.")
    if row.state != DealState.RESERVED.value:
        raise Spent("This deal has been used up or burned.", hint="Ask for a new deal.")
    return row.bytes_of(party)


def confirm(ctx: Context, deal_id: str, caller: str) -> store.DealRow:
    """This party holds its half. Said again, it changes nothing."""
    with ctx.db.session() as session:
        row = store.deal(session, deal_id, lock=True)
        party = row.parties().index(caller)
        if row.received_by(party):
            return row
        _size(row, party)
        if row.start_of(party) is None:
            raise Conflict("This half has not been downloaded.")
        store.record_received(row, party)
        # A received half is never handed out again; the other party still needs the common part.
        done = PARTS if row.state == DealState.SPENT.value else (PARTS[party],)
        after_commit(session, lambda: remove_parts(ctx, deal_id, done))
    return row


def burn(ctx: Context, deal_id: str, caller: str) -> None:
    """Either party throws the deal away. An ended deal stays as it is."""
    with ctx.db.session() as session:
        row = store.deal(session, deal_id, lock=True)
        row.parties().index(caller)
        if row.state in (DealState.SPENT.value, DealState.FAILED.value):
            return
        row.advance(Event.BURN, f"burned by {caller}")
        after_commit(session, lambda: remove_parts(ctx, deal_id))
