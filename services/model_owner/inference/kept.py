"""Sessions that a node asks for ahead of its images: half 0 and P1's first message, on the disk.

Both are used once: in the transaction that opens the session for an image its row leaves the states
from which that could happen, and the files are gone before the session answers anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading

from sqlalchemy.orm import Session

from primia.chassis.context import Context
from primia.chassis.files import settle
from primia.chassis.leases import lease
from primia.errors import Conflict, PrimiaError, Unavailable, UnexpectedMessage
from primia.mpc.frames import OFFLINE_STEP, Kind, frame, offline_size
from primia.mpc.material import half_size
from primia.mpc.owner import check_offline
from primia.mpc.plan import Plan
from services.model_owner.inference import sessions, store
from services.model_owner.inference.domain import (
    AHEAD_SESSIONS,
    SessionEvent,
    SessionState,
)

KEEP = "inference.keep"
_DOWNLOADING = "inference.kept downloads"
_PAUSE_SECONDS = 2.0


def disk_size(plan: Plan, batch: int) -> int:
    """Bytes of half 0 and of the message that comes ahead."""
    return half_size(plan, batch, 0) + offline_size(plan, batch)


def require_room(ctx: Context, session: Session, node: str, size: int) -> None:
    """Raises Unavailable where as much is kept already, StorageFull where the disk is full."""
    own, held = store.kept_ahead(session, node)
    if own >= ctx.settings.max_kept_a_node or held + size > ctx.settings.max_kept_bytes:
        raise Unavailable(
            "As much material as this service keeps ahead (in all, or for a node) lies here.",
            hint="Ask for the session when there is an image; the deal stays yours.",
            retry_after=60,
        )
    ctx.files.require(size)


def keep(ctx: Context, session_id: str) -> None:
    """Fetch half 0 and keep it; a session that cannot be kept fails, and its deal is burned.

    One download at a time in a process: the other threads are for images.
    """
    one = ctx.extras.setdefault(_DOWNLOADING, threading.Lock())
    if not one.acquire(blocking=False):
        ctx.jobs.enqueue(KEEP, session_id, _PAUSE_SECONDS)
        return
    try:
        with lease(ctx.db, ctx.clock, store.SessionRow, session_id) as held:
            if held is None:
                return
            with ctx.db.reading() as session:
                row = store.session_row(session, session_id)
            if row.state != SessionState.KEEPING.value:
                return
            try:
                _keep(ctx, row)
            except PrimiaError as error:
                sessions.broke(ctx, session_id, error.detail)
    finally:
        one.release()
    with ctx.db.reading() as session:
        row = store.session_row(session, session_id)
    if row.state == SessionState.PREPARING.value:  # asked for meanwhile, while the row was held
        ctx.jobs.enqueue("inference.open", session_id)


def _keep(ctx: Context, row: store.SessionRow) -> None:
    path = sessions.half_path(ctx, row.id)
    sessions.download(ctx, row, _plan(ctx, row), path)
    with contextlib.suppress(FileNotFoundError):  # burned meanwhile
        settle(path)  # nothing checks its digest any more
    with ctx.db.session() as session:
        current = store.session_row(session, row.id, lock=True)
        current.stored = current.state != SessionState.FAILED.value
        if current.state == SessionState.KEEPING.value:
            current.advance(SessionEvent.STORED)
    if current.stored:
        sessions.confirm(ctx, row)
    else:
        path.unlink(missing_ok=True)


def _plan(ctx: Context, row: store.SessionRow) -> Plan:
    with ctx.db.reading() as session:
        found = store.serving(session, row.plan)
    return Plan.parse((found.document or "").encode())


def take_offline(ctx: Context, row: store.SessionRow, body: bytes) -> bytes:
    """Keep P1's first message; the answer is an empty frame. The same again changes nothing.

    Raises MalformedMessage, or UnexpectedMessage where another one is kept already.
    """
    session_id = bytes.fromhex(row.id)
    check_offline(_plan(ctx, row), row.batch, session_id, bytes.fromhex(row.deal), body)
    accepted = frame(Kind.ACCEPTED, session_id, OFFLINE_STEP, [])
    digest = hashlib.sha256(body).hexdigest()
    if row.offline is None:
        ctx.files.write(sessions.offline_path(ctx, row.id), body)
    with ctx.db.session() as session:
        current = store.session_row(session, row.id, lock=True)
        if SessionState(current.state) not in AHEAD_SESSIONS:
            raise Conflict("The session is not kept any more.")
        if current.offline not in (None, digest):
            raise UnexpectedMessage("Another message was taken for this session before.")
        current.offline = digest
    return accepted


def watch(ctx: Context) -> None:
    """End what has expired, or is of a plan that is served no more; send lost work again."""
    with ctx.db.session() as session:
        for row in store.useless_ahead(session, ctx.clock.now()):
            row.advance(SessionEvent.BROKE, "it was kept ahead for too long, or its plan withdrawn")
            ctx.jobs.enqueue_after(session, "inference.burn", row.id)
    with ctx.db.reading() as session:
        waiting = store.to_keep(session)
    for session_id in waiting:
        ctx.jobs.enqueue(KEEP, session_id)


def files(ctx: Context) -> set[str]:
    """Names of the files that are still needed."""
    with ctx.db.reading() as session:
        wanted = store.with_files(session)
    paths = (sessions.half_path, sessions.offline_path)
    return {path(ctx, session_id).name for session_id in wanted for path in paths}
