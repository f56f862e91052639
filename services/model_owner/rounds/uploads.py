"""The upload of an update, of a size known beforehand: onto the disk, checked, then a row."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from anyio.to_thread import run_sync
from fastapi import Request
from sqlalchemy.orm import Session

from primia.aggregation.bounds import Norms
from primia.aggregation.terms import Groups
from primia.aggregation.wire import HEADER_BYTES, Header, Kind, chunks, read_header
from primia.chassis.context import Context
from primia.chassis.files import Files
from primia.prg import fresh_bytes
from services.model_owner.registry import receive
from services.model_owner.registry.receive import Received
from services.model_owner.rounds import answers, beginning, limits, secure, store
from services.model_owner.rounds.tables import Contribution, Round, Run


def round_file(files: Files, run: str, number: int, name: str) -> Path:
    return files.path("runs", run, str(number), name)


def expected_header(session: Session, run: Run, row: Round) -> Header:
    count, beside = secure.groups(run, row).size, beginning.integers(session, run, row)
    return Header(kind_of(row), secure.round_id(run, row), count, beside)


def kind_of(row: Round) -> Kind:
    if row.purpose != "train":
        return Kind.INTEGERS
    return Kind.MASKED if row.secure else Kind.PLAIN


async def receive_update(
    ctx: Context, request: Request, run_id: str, number: int, node: str
) -> None:
    """Raises what answers.seat does, MalformedMessage or UnexpectedMessage (header, size),
    InvalidUpdate (NaN, norm), TooLarge, StorageFull; then the node may still send a right one."""
    header = await run_sync(_expected, ctx, run_id, number, node)
    target = round_file(ctx.files, run_id, number, f"update-{node}-{fresh_bytes(8).hex()}")
    keep = False
    try:
        received = await receive.to_file(
            request,
            ctx.files,
            target,
            header.frame_bytes,
            exactly=True,
            head=HEADER_BYTES,
            check_head=_head_check(header),
        )
        if header.kind is Kind.PLAIN:
            await run_sync(check_change, ctx, run_id, number, target)
        keep = await run_sync(_take, ctx, run_id, number, node, target, received)
    finally:
        if not keep:
            target.unlink(missing_ok=True)


def _head_check(expected: Header) -> Callable[[bytes], None]:
    def check(head: bytes) -> None:
        read_header(head, expected)

    return check


def _expected(ctx: Context, run_id: str, number: int, node: str) -> Header:
    """What may come; an answer that has been given may come again."""
    with ctx.db.reading() as session:
        here = answers.Place(
            ctx, session, store.find(session, run_id), store.site(session, run_id, node)
        )
        row = store.find_round(session, run_id, number)
        given = session.get(Contribution, (row.id, node)) if row else None
        if row is None or given is None or "upload" not in given.answers:
            row = _seat_row(here, number)
        return expected_header(session, here.run, row)


def _seat_row(here: answers.Place, number: int) -> Round:
    taken = answers.seat(here, number, "upload", None)
    assert taken is not None  # only the repeat of a known answer has no seat
    return taken.row


def check_change(ctx: Context, run_id: str, number: int, path: Path) -> None:
    """Raises InvalidUpdate for a change that is not finite, naming the index, or too large for the
    weights that it changes. Once the round is over only a repeat is taken, and that by its bytes.
    """
    with ctx.db.reading() as session:
        run = store.find(session, run_id)
    norms = Norms(Groups(run.parameters, run.buffers))
    with path.open("rb") as file:
        file.seek(HEADER_BYTES)
        for _, values in chunks(file, norms.groups.size, "<f4"):
            norms.add(values)
    if run.number == number:
        with contextlib.suppress(FileNotFoundError):  # the run has ended meanwhile
            norms.check(limits.of_run(ctx, run))


def _take(
    ctx: Context, run_id: str, number: int, node: str, file: Path, received: Received
) -> bool:
    """Whether the row refers to the file now; false for a repeat of what is there already."""
    with ctx.db.session() as session:
        here = answers.place(ctx, session, run_id, node)
        taken = answers.seat(here, number, "upload", received.digest)
        if taken is None:
            return False
        taken.contribution.upload = file.name
        ctx.jobs.enqueue_after(session, "rounds.absorb", taken.row.id)
        taken.give(received.digest, received.bytes)
    ctx.metrics.counter("update_bytes", "Bytes of updates taken in").inc(received.bytes)
    return True
