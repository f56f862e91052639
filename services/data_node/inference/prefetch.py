"""Deals fetched ahead of any image (``PRIMIA_PREFETCH``), so that an inference starts at once.

The model owner is asked for a session ahead: it fetches its half too, and is sent the message that
does not depend on the image. In short tasks, for a worker has few threads: one asks for a deal,
others look how far it is, one at a time in a process downloads. A plan has one deal under way at
most: where the dealer is busy, it is asked again later and later, and for no more.
"""

from __future__ import annotations

import threading
from datetime import timedelta
from enum import Enum

from primia.chassis.context import Context
from primia.chassis.files import settle
from primia.chassis.leases import lease
from primia.chassis.telemetry import get_logger
from primia.errors import PeerError, PeerUnavailable, PrimiaError, UnexpectedMessage
from primia.messages.inference import Deal, ServedModel, ServedPlan, Session, SessionRequest
from primia.mpc.client import Client
from primia.mpc.material import Half, half_size
from primia.prg import fresh_bytes
from services.data_node.inference import kept, material
from services.data_node.inference.kept import DEALING, FETCHING, KEPT, WAITING, PrefetchedDeal
from services.data_node.inference.served import dealer, owner, prepared, served_models

log = get_logger(__name__)
FETCH = "inference.fetch"
_DOWNLOADING = "inference.prefetch downloads"
# Between two looks at a deal that is being made, or at a download that another goes before.
_PAUSE_SECONDS = 2.0
# Between two requests of a dealer that had none to give.
_FIRST_PAUSE = timedelta(seconds=20)
_LONGEST_PAUSE = timedelta(minutes=10)


def refill(ctx: Context) -> None:
    """Keep ``prefetch`` deals for each plan that is served, of the batch that is in stock."""
    kept.drop_old(ctx)
    with ctx.db.reading() as session:
        due = kept.due(session, ctx.clock.now())
    for row_id in due:
        ctx.jobs.enqueue(FETCH, row_id)
    if not ctx.settings.prefetch:
        return
    models = served_models(ctx).models
    kept.drop_unserved(ctx, [plan.plan for model in models for plan in model.plans])
    for model in models:
        for plan in model.plans:
            ask(ctx, ServedModel(card=model.card, plans=(plan,)))


def ask(ctx: Context, model: ServedModel) -> None:
    """One more deal for the model's one plan, where there are too few and none is under way."""
    plan = model.plans[0]
    most = min(ctx.settings.max_batch, plan.largest_batch)
    if not ctx.settings.prefetch or plan.batch > most:  # no inference could use it
        return
    with ctx.db.session() as session:
        rows = kept.open_rows(session, plan.plan, plan.batch)
        if len(rows) >= ctx.settings.prefetch or any(row.state != KEPT for row in rows):
            return
        row = PrefetchedDeal(
            id=fresh_bytes(16).hex(),
            plan=plan.plan,
            batch=plan.batch,
            served=model.model_dump_json(),
            state=FETCHING,
        )
        session.add(row)
        session.flush()
        ctx.jobs.enqueue_after(session, FETCH, row.id)


class _Then(Enum):
    """What follows a step."""

    KEPT = "another deal, where one more is wanted"
    AT_ONCE = "the next step"
    SOON = "the next look"
    SWEEP = "whatever the sweep finds"


def fetch(ctx: Context, row_id: str) -> None:
    """One step towards a kept deal. What breaks is burned and dropped."""
    then = _Then.SWEEP
    with lease(ctx.db, ctx.clock, PrefetchedDeal, row_id) as held:
        if held is None:
            return
        with ctx.db.reading() as session:
            row = session.get(PrefetchedDeal, row_id)
        if row is None or row.state not in kept.UNDER_WAY:
            return
        if row.state == FETCHING and row.deal is not None:  # a worker died while it downloaded
            kept.drop(ctx, row_id)
            return
        model = ServedModel.model_validate_json(row.served)
        try:
            then = _fetch(ctx, row, model, held.attempt)
        except PrimiaError as error:
            log.warning("a deal was not prefetched", code=error.code, detail=error.detail)
            kept.drop(ctx, row_id)
    # The row is free again: another task may take it.
    if then is _Then.KEPT:
        ask(ctx, model)
    elif then is not _Then.SWEEP:
        ctx.jobs.enqueue(FETCH, row_id, _PAUSE_SECONDS if then is _Then.SOON else 0)


def _fetch(ctx: Context, row: PrefetchedDeal, model: ServedModel, attempt: int) -> _Then:
    try:
        if row.state == WAITING:
            return _wait(ctx, row, model)
        deal = _deal(ctx, row, model, attempt)
    except PeerUnavailable:  # what is held expires by itself
        return _Then.SWEEP
    if deal is None:
        return _Then.SWEEP
    if deal.state == "dealing":
        return _Then.SOON
    if deal.state != "reserved":
        raise UnexpectedMessage(f"The deal is {deal.state}. {deal.reason}".strip())
    return _download(ctx, row, deal, model)


def _deal(ctx: Context, row: PrefetchedDeal, model: ServedModel, attempt: int) -> Deal | None:
    if row.deal is None:
        return _reserved(ctx, model, row, attempt)
    return dealer(ctx).get(f"/deals/{row.deal}", Deal)


def _reserved(ctx: Context, model: ServedModel, row: PrefetchedDeal, attempt: int) -> Deal | None:
    """A deal for this row, or None where the dealer has none to give: then nothing is lost, and it
    is asked again later."""
    wanted = model.plans[0]
    try:
        ctx.files.require(half_size(prepared(ctx, model, wanted).plan, row.batch, 1))
        deal = material.reserve(ctx, wanted, row.batch, lambda: None, patience=0, ahead=True)
    except PrimiaError as error:
        pause = min(_FIRST_PAUSE * 2 ** min(attempt - 1, 10), _LONGEST_PAUSE)
        log.info("no deal to prefetch at present", detail=error.detail)
        with ctx.db.session() as session:
            session.get_one(PrefetchedDeal, row.id).again = ctx.clock.now() + pause
        return None
    _set(ctx, row.id, DEALING, deal)
    return deal


def _download(ctx: Context, row: PrefetchedDeal, deal: Deal, model: ServedModel) -> _Then:
    one = ctx.extras.setdefault(_DOWNLOADING, threading.Lock())
    if not one.acquire(blocking=False):  # the other threads are for images
        return _Then.SOON
    try:
        asked = _ask_session(ctx, model.plans[0], deal)
        if not _set(ctx, row.id, FETCHING, deal, asked):
            return _Then.SWEEP
        path = kept.half_path(ctx, row.id)
        material.download(ctx, deal, prepared(ctx, model, model.plans[0]).plan, row.batch, path)
        settle(path)  # nothing checks its digest any more
        material.confirm(ctx, deal)
        if not _set(ctx, row.id, WAITING if asked else KEPT, deal, asked):
            return _Then.SWEEP
        return _Then.AT_ONCE if asked else _Then.KEPT
    finally:
        one.release()


def _ask_session(ctx: Context, wanted: ServedPlan, deal: Deal) -> str | None:
    """The session in which the model owner keeps its half, fetched at the same time; None where it
    does not: then it is asked when there is an image."""
    request = SessionRequest(
        plan=wanted.plan, digest=wanted.digest, deal=deal.id, batch=deal.batch, ahead=True
    )
    try:
        found = owner(ctx).parse(owner(ctx).post("/inference/sessions", request), Session)
    except PeerError as error:
        log.info("the model owner keeps no half ahead", detail=error.detail)
        return None
    return found.id


def _wait(ctx: Context, row: PrefetchedDeal, model: ServedModel) -> _Then:
    """The offline message is sent once this node's half is here; then the owner's is waited for."""
    path = f"/inference/sessions/{row.session}"
    if row.share is None:
        _send_offline(ctx, row, model)
    found = owner(ctx).get(path, Session)
    if found.state == "keeping":
        return _Then.SOON
    if found.state != "kept" or not found.offline:
        raise UnexpectedMessage(f"The session is {found.state}. {found.reason}".strip())
    with ctx.db.session() as session:
        current = session.get_one(PrefetchedDeal, row.id, with_for_update=True)
        if current.state != WAITING:
            return _Then.SWEEP
        current.state, current.expires = KEPT, found.expires or current.expires
    return _Then.KEPT


def _send_offline(ctx: Context, row: PrefetchedDeal, model: ServedModel) -> None:
    """P1's half of the linear layers. After a crash it comes out the same, to the byte."""
    ready = prepared(ctx, model, model.plans[0])
    deal_id, session_id = bytes.fromhex(row.deal or ""), bytes.fromhex(row.session or "")
    path = kept.half_path(ctx, row.id)
    half = Half.map(path, ready.plan, row.batch, 1, deal_id, whole=False)
    client = Client(ready.opening, half, session_id)
    try:
        body, share = client.offline(), client.share()
    finally:
        client.close()
    owner(ctx).request("PUT", f"/inference/sessions/{row.session}/offline", content=body)
    with ctx.db.session() as session:
        current = session.get_one(PrefetchedDeal, row.id, with_for_update=True)
        if current.state == WAITING:
            current.share = ctx.secrets.seal(share, kept.share_purpose(row.id))


def _set(ctx: Context, row_id: str, state: str, deal: Deal, session_id: str | None = None) -> bool:
    """False where it was dropped meanwhile, and stays so."""
    with ctx.db.session() as session:
        row = session.get_one(PrefetchedDeal, row_id, with_for_update=True)
        if row.state not in kept.UNDER_WAY:
            return False
        row.state, row.deal, row.expires = state, deal.id, deal.expires
        row.session = session_id
    return True
