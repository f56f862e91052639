"""Deals downloaded ahead of any image (``PRIMIA_PREFETCH``), so that an inference starts at once.

In short tasks, for a worker has few threads: one asks for a deal, others look whether it is made,
one at a time in a process downloads. A plan has one deal under way at most: where the dealer is
busy, it is asked again later and later, and for no more.
"""

from __future__ import annotations

import threading
from datetime import timedelta

from primia.chassis.context import Context
from primia.chassis.leases import lease
from primia.chassis.telemetry import get_logger
from primia.errors import PeerRefused, PeerUnavailable, PrimiaError, UnexpectedMessage
from primia.messages.inference import Deal, ServedModel, ServedPlan
from primia.mpc.material import half_size
from primia.mpc.plan import Plan
from primia.prg import fresh_bytes
from services.data_node.inference import kept, material
from services.data_node.inference.kept import DEALING, FETCHING, KEPT, PrefetchedDeal
from services.data_node.inference.served import dealer, prepared, served_models

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
    for model in served_models(ctx).models:
        for plan in model.plans:
            _ask(ctx, ServedModel(card=model.card, plans=(plan,)), plan)


def _ask(ctx: Context, model: ServedModel, plan: ServedPlan) -> None:
    """One more deal, where there are too few and none is under way."""
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


def fetch(ctx: Context, row_id: str) -> None:
    """One step towards a kept deal. What breaks is burned and dropped."""
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
        try:
            done = _fetch(ctx, row, held.attempt)
        except PrimiaError as error:
            log.warning("a deal was not prefetched", code=error.code, detail=error.detail)
            kept.drop(ctx, row_id)
            return
    if done:
        model = ServedModel.model_validate_json(row.served)
        _ask(ctx, model, model.plans[0])


def _fetch(ctx: Context, row: PrefetchedDeal, attempt: int) -> bool:
    """Whether the deal is kept now; else it is looked at again."""
    model = ServedModel.model_validate_json(row.served)
    if row.deal is None:
        deal = _reserved(ctx, model, row, attempt)
        if deal is None:
            return False
    else:
        try:
            deal = dealer(ctx).get(f"/deals/{row.deal}", Deal)
        except PeerUnavailable:  # the sweep looks again; the deal expires by itself
            return False
    if deal.state == "dealing":
        ctx.jobs.enqueue(FETCH, row.id, _PAUSE_SECONDS)
        return False
    if deal.state != "reserved":
        raise UnexpectedMessage(f"The deal is {deal.state}. {deal.reason}".strip())
    return _download(ctx, row, deal, prepared(ctx, model, model.plans[0]).plan)


def _reserved(ctx: Context, model: ServedModel, row: PrefetchedDeal, attempt: int) -> Deal | None:
    """A deal for this row, or None where the dealer has none to give: then nothing is lost, and it
    is asked again later."""
    wanted = model.plans[0]
    try:
        ctx.files.require(half_size(prepared(ctx, model, wanted).plan, row.batch, 1))
        deal = material.reserve(ctx, wanted, row.batch, lambda: None, patience=0, ahead=True)
    except PeerRefused:  # it is not served any more
        raise
    except PrimiaError as error:
        pause = min(_FIRST_PAUSE * 2 ** min(attempt - 1, 10), _LONGEST_PAUSE)
        log.info("no deal to prefetch at present", detail=error.detail)
        with ctx.db.session() as session:
            session.get_one(PrefetchedDeal, row.id).again = ctx.clock.now() + pause
        return None
    _set(ctx, row.id, DEALING, deal)
    return deal


def _download(ctx: Context, row: PrefetchedDeal, deal: Deal, plan: Plan) -> bool:
    one = ctx.extras.setdefault(_DOWNLOADING, threading.Lock())
    if not one.acquire(blocking=False):  # the other threads are for images
        ctx.jobs.enqueue(FETCH, row.id, _PAUSE_SECONDS)
        return False
    try:
        if not _set(ctx, row.id, FETCHING, deal):
            return False
        material.download(ctx, deal, plan, row.batch, kept.half_path(ctx, row.id))
        material.confirm(ctx, deal)
        return _set(ctx, row.id, KEPT, deal)
    finally:
        one.release()


def _set(ctx: Context, row_id: str, state: str, deal: Deal) -> bool:
    """False where it was dropped meanwhile, and stays so."""
    with ctx.db.session() as session:
        row = session.get_one(PrefetchedDeal, row_id, with_for_update=True)
        if row.state not in kept.UNDER_WAY:
            return False
        row.state, row.deal, row.expires = state, deal.id, deal.expires
    return True
