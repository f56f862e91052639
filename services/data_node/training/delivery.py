"""Sending stored answers to the model owner: the same bytes, until it has taken or refused them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.orm import Session

from primia.chassis.context import Context
from primia.chassis.peers import PeerClient
from primia.chassis.telemetry import get_logger
from primia.errors import PeerRefused, PrimiaError
from services.data_node.training import domain, store
from services.data_node.training.domain import RoundKind
from services.data_node.training.round_files import RoundFiles
from services.data_node.training.tables import Run, WorkRow

log = get_logger(__name__)
_CHUNK = 1 << 20
_LONGEST_WAIT = 30.0
# A large update takes its time on a slow line; the owner bounds the phase.
_UPLOAD_SECONDS = 600.0


def deliver(ctx: Context, item_id: str) -> None:
    """Send an answered item. What passes by itself is tried again later, from the row."""
    with ctx.db.reading() as session:
        row = session.get(WorkRow, item_id)
    if row is None or row.state != "answered" or row.path is None:
        return
    try:
        _send(ctx, row, row.path)
    except PrimiaError as error:
        if domain.passes(error):
            postpone(ctx, item_id, error)
        else:
            _refused(ctx, item_id, error)
    else:
        _sent(ctx, item_id)


def _send(ctx: Context, row: WorkRow, path: str) -> None:
    owner = ctx.peers.client(ctx.settings.owner_name, ctx.settings.owner_url)
    if path.endswith("/update"):
        _send_file(owner, path, RoundFiles(ctx, row.run, row.round).update)
    elif row.answer is None:
        owner.request("PUT", path)
    else:
        headers = {"Content-Type": "application/json"}
        owner.request("PUT", path, content=row.answer.encode(), headers=headers)


def _send_file(owner: PeerClient, path: str, file: Path) -> None:
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        raise PeerRefused("The round is over at this site; its update is gone.") from None
    headers = {"Content-Length": str(size)}
    owner.request("PUT", path, content=_pieces(file), headers=headers, timeout=_UPLOAD_SECONDS)


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while piece := opened.read(_CHUNK):
            yield piece


def _sent(ctx: Context, item_id: str) -> None:
    with ctx.db.session() as session:
        row = session.get(WorkRow, item_id, with_for_update=True)
        if row is None or row.state != "answered":
            return
        first = row.sent is None
        row.state, row.sent = "sent", ctx.clock.now()
        run = session.get(Run, row.run, with_for_update=True)
        if run is None or not first:
            return
        if not (row.path or "").endswith("/failure"):
            store.clear_error(run)
        kind = store.kind_of_round(session, row.run, row.round)
        if _ends_round(row, run, kind):
            _end_round(ctx, session, row, run, kind)


def _ends_round(row: WorkRow, run: Run, kind: RoundKind) -> bool:
    """Whether this was the last that the owner wants of this site in the round."""
    is_secure = kind == "measure" or run.read_proposal().secure
    return (row.path or "").endswith("/shares" if is_secure else "/update")


def _end_round(ctx: Context, session: Session, row: WorkRow, run: Run, kind: RoundKind) -> None:
    """The revealed shares are in the stored answer: the keys are not needed any more."""
    run.rounds_done += kind == "train"
    store.wipe_secrets(session, run.id, below=row.round + 1)
    store.event(
        session, run.id, "round", {"round": row.round, "done": run.rounds_done}, ctx.clock.now()
    )


def _refused(ctx: Context, item_id: str, error: PrimiaError) -> None:
    """The owner will not have the answer: too late, or of no use any more."""
    log.warning("the model owner refused an answer", id=item_id, detail=error.detail)
    with ctx.db.session() as session:
        row = session.get(WorkRow, item_id, with_for_update=True)
        if row is None or row.state != "answered":
            return
        row.state = "dropped"
        run = session.get(Run, row.run, with_for_update=True)
        if run is None:
            return
        store.set_error(session, run, error.code, error.detail, ctx.clock.now())
        if row.kind == "review" and run.state == "active":
            reason = "The model owner did not accept this site's decision."
            store.end(session, run, "failed", reason, ctx.clock.now())


def postpone(ctx: Context, item_id: str, error: PrimiaError) -> None:
    """Keep the item for later, say why, and try again by itself: longer each time."""
    with ctx.db.session() as session:
        row = session.get(WorkRow, item_id, with_for_update=True)
        if row is None:
            return
        delay = min(_LONGEST_WAIT, 0.5 * 2 ** min(row.attempts, 10))
        row.not_before = ctx.clock.after(delay)
        run = session.get(Run, row.run, with_for_update=True)
        if run is not None:
            store.set_error(session, run, error.code, error.detail, ctx.clock.now())
        ctx.jobs.enqueue_after(session, "training.work", item_id, countdown=delay)
    log.warning("will be tried again", id=item_id, code=error.code, seconds=delay)
