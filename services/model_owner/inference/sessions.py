"""Opening sessions in the worker, and keeping their rows true."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from primia.chassis.context import Context
from primia.chassis.halves import fetch_half
from primia.chassis.leases import lease
from primia.chassis.telemetry import get_logger
from primia.errors import MalformedMessage, PrimiaError, Unavailable, UnexpectedMessage
from primia.fss import kernels
from primia.messages.inference import Deal
from primia.mpc.frames import offline_size, request_size
from primia.mpc.material import Half, Manifest, half_size
from primia.mpc.owner import Owner
from primia.mpc.plan import Plan
from services.model_owner.inference import store
from services.model_owner.inference.domain import (
    AHEAD_SESSIONS,
    LIVE_SESSIONS,
    SessionEvent,
    SessionState,
)
from services.model_owner.inference.host import SessionHost
from services.model_owner.inference.listener import Listener
from services.model_owner.inference.models import PreparedModels
from services.model_owner.inference.serving import dealer

log = get_logger(__name__)
WORKER = "inference.worker"
FOLDER = "sessions"
# A session that is being prepared waits for this long for a worker, and for the next piece of its
# half; an open one whose worker does not renew it for this long is lost.
PREPARE_SECONDS = 600
ALIVE_SECONDS = 60
_RENEW_SECONDS = 10
_WAIT_SECONDS = 25


@dataclass
class InferenceWorker:
    """What a worker process makes for itself at its start (``ctx.extras[WORKER]``)."""

    host: SessionHost
    listener: Listener
    models: PreparedModels
    aside: Executor


def token_purpose(session_id: str) -> str:
    return f"token of session {session_id}"


def largest_body(plan: Plan, batch: int) -> int:
    """Bytes of the largest message that a data node sends in a session."""
    sizes = (request_size(plan, batch, number) for number in range(plan.requests))
    return max(offline_size(plan, batch), *sizes)


def open_session(ctx: Context, session_id: str) -> None:
    """Fetch half 0 and take the session into this worker; else it fails, and its deal is burned."""
    with lease(ctx.db, ctx.clock, store.SessionRow, session_id) as held:
        if held is None:
            return
        with ctx.db.reading() as session:
            row = store.session_row(session, session_id)
        if row.state != SessionState.PREPARING.value:
            return
        try:
            _open(ctx, row)
        except PrimiaError as error:
            broke(ctx, session_id, error.detail)


def _open(ctx: Context, row: store.SessionRow) -> None:
    worker: InferenceWorker | None = ctx.extras.get(WORKER)
    if worker is None:
        raise Unavailable("This process holds no inference sessions.")
    worker.host.require_room()
    model = worker.models.get(row.plan)
    half = _stored_half(ctx, row, model.plan) if row.stored else _fetch_half(ctx, row, model.plan)
    evaluator = kernels.evaluator(ctx.settings.kernel, ctx.settings.threads)
    let_go = half.hold()
    owner = Owner(model, half, bytes.fromhex(row.id), evaluator)
    try:
        if row.offline is not None:
            owner.offline(_offline_message(ctx, row))
        token = worker.host.open(row.id, owner, let_go)
    except BaseException:
        owner.close()
        let_go()
        raise
    with ctx.db.session() as session:
        current = store.session_row(session, row.id, lock=True)
        opened = current.state == SessionState.PREPARING.value
        if opened:  # else the row may name another worker, which holds it
            current.advance(SessionEvent.OPENED)
            current.host = worker.listener.url
            current.token = ctx.secrets.seal(token.encode(), token_purpose(row.id))
            current.alive_until = ctx.clock.after(ALIVE_SECONDS)
    if not opened:
        worker.host.drop(row.id, token, "it was ended while it was prepared")


def half_path(ctx: Context, session_id: str) -> Path:
    return ctx.files.path(FOLDER, f"{session_id}.half")


def offline_path(ctx: Context, session_id: str) -> Path:
    return ctx.files.path(FOLDER, f"{session_id}.offline")


def _stored_half(ctx: Context, row: store.SessionRow, plan: Plan) -> Half:
    """The half that was fetched ahead. Its file goes before the session answers anything, so that
    no other session can be opened on it."""
    path = half_path(ctx, row.id)
    try:
        return Half.map(path, plan, row.batch, 0, bytes.fromhex(row.deal))
    except FileNotFoundError as error:
        raise UnexpectedMessage("A worker died over the half that was kept.") from error
    finally:
        path.unlink(missing_ok=True)


def _offline_message(ctx: Context, row: store.SessionRow) -> bytes:
    path = offline_path(ctx, row.id)
    try:
        body = path.read_bytes()
    except FileNotFoundError as error:
        raise UnexpectedMessage("A worker died over the message that was kept.") from error
    finally:
        path.unlink(missing_ok=True)
    if hashlib.sha256(body).hexdigest() != row.offline:
        raise MalformedMessage("The message that was kept is damaged.")
    return body


def _fetch_half(ctx: Context, row: store.SessionRow, plan: Plan) -> Half:
    path = half_path(ctx, row.id)
    try:
        download(ctx, row, plan, path)
        half = Half.map(path, plan, row.batch, 0, bytes.fromhex(row.deal))
    finally:
        path.unlink(missing_ok=True)  # the map keeps the bytes; nothing is left after a crash
    confirm(ctx, row)
    return half


def download(ctx: Context, row: store.SessionRow, plan: Plan, path: Path) -> None:
    """Half 0 as a file, verified."""
    client = dealer(ctx)
    deal = client.get(
        f"/deals/{row.deal}", Deal, params={"wait": _WAIT_SECONDS}, timeout=_WAIT_SECONDS + 10
    )
    _check_deal(deal, row, plan)
    ctx.files.require(half_size(plan, row.batch, 0))
    manifest = Manifest(p0=deal.own_sha256 or "", p1="", common=deal.common_sha256 or "")
    arrives = _Arriving(ctx, row.id).piece
    fetch_half(client, row.deal, path, manifest, plan, row.batch, 0, arrives)


def confirm(ctx: Context, row: store.SessionRow) -> None:
    dealer(ctx).request("POST", f"/deals/{row.deal}/received")


class _Arriving:
    """While its half arrives a session stays, however large the half: it is renewed now and then.
    Of one that was ended meanwhile, the download is broken off."""

    def __init__(self, ctx: Context, session_id: str) -> None:
        self._ctx = ctx
        self._id = session_id
        self._renewed = time.monotonic()

    def piece(self) -> None:
        now = time.monotonic()
        if now - self._renewed < _RENEW_SECONDS:
            return
        self._renewed = now
        with self._ctx.db.session() as session:
            row = store.session_row(session, self._id, lock=True)
            if row.state not in (SessionState.KEEPING.value, SessionState.PREPARING.value):
                raise UnexpectedMessage("The session was ended while it was prepared.")
            row.alive_until = self._ctx.clock.after(PREPARE_SECONDS)


def _check_deal(deal: Deal, row: store.SessionRow, plan: Plan) -> None:
    """The dealer's word on whom the deal is for; a node cannot name another's."""
    if deal.state != "reserved":
        raise UnexpectedMessage(f"The deal is {deal.state}. {deal.reason}".strip())
    named = (deal.plan, deal.digest, deal.batch, deal.node, deal.party)
    if named != (row.plan, plan.digest().hex(), row.batch, row.node, 0):
        raise UnexpectedMessage("The deal is not for this session's plan, batch and node.")
    if deal.bytes != half_size(plan, row.batch, 0):
        raise MalformedMessage("The deal's half has another size than its plan says.")


def ended(ctx: Context, session_id: str, finished: bool, reason: str) -> None:
    """What the host reports."""
    if not finished:
        broke(ctx, session_id, reason)
        return
    with ctx.db.session() as session:
        row = store.session_row(session, session_id, lock=True)
        if row.state == SessionState.READY.value:
            row.advance(SessionEvent.FINISHED)


def broke(ctx: Context, session_id: str, reason: str) -> None:
    """The session is gone; its deal is burned once this is committed."""
    with ctx.db.session() as session:
        row = store.session_row(session, session_id, lock=True)
        if SessionState(row.state) in (*AHEAD_SESSIONS, *LIVE_SESSIONS):
            row.advance(SessionEvent.BROKE, reason)
            ctx.jobs.enqueue_after(session, "inference.burn", session_id)


def burn(ctx: Context, session_id: str) -> None:
    """Throw the deal of a broken session away; the dealer's own expiry stands behind this."""
    with ctx.db.reading() as session:
        row = store.session_row(session, session_id)
    if row.state == SessionState.FAILED.value:
        for path in (half_path(ctx, session_id), offline_path(ctx, session_id)):
            path.unlink(missing_ok=True)
        dealer(ctx).delete(f"/deals/{row.deal}")


def watch(ctx: Context) -> None:
    """Fail the sessions whose worker is gone; send lost work again."""
    with ctx.db.session() as session:
        for row in store.lost_sessions(session, ctx.clock.now()):
            row.advance(SessionEvent.BROKE, "the model owner's worker that held it is gone")
            ctx.jobs.enqueue_after(session, "inference.burn", row.id)
    with ctx.db.reading() as session:
        waiting = store.preparing(session)
    for session_id in waiting:
        ctx.jobs.enqueue("inference.open", session_id)
