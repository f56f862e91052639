"""Routes of the dealer: plans for model owners, deals for both parties."""

from __future__ import annotations

from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Path, Response
from sqlalchemy.orm import Session
from starlette.responses import StreamingResponse

from primia.chassis import problems
from primia.chassis.auth import require
from primia.chassis.context import Context, Ctx
from primia.chassis.identity import Principal, encode_key
from primia.chassis.waiting import Wait, until
from primia.errors import Conflict, Forbidden, InvalidInput, Unavailable
from primia.messages.common import Id
from primia.messages.inference import (
    OCTETS,
    Deal,
    DealRequest,
    DealState,
    MaskSeed,
    PlanOffer,
    PlanStatus,
)
from primia.mpc.plan import Plan
from primia.prg import Seed
from services.crypto_provider.material import downloads, store
from services.crypto_provider.material.domain import Sizes, affordable, check_fits
from services.crypto_provider.material.tasks import MASK_PURPOSE, refill_plan

router = APIRouter(tags=["material"])
Owner = Annotated[Principal, Depends(require("model_owner"))]
Node = Annotated[Principal, Depends(require("data_node"))]
Party = Annotated[Principal, Depends(require("model_owner", "data_node"))]
PlanId = Annotated[Id, Path(description="the owner's identifier of a served model version")]
DealId = Annotated[Id, Path(description="from `POST /deals`")]

_EXAMPLE_DEAL = {
    "id": "5d0f3f2c9a1e4b7d8c6a5e4f3d2c1b0a",
    "plan": "0a1b2c3d4e5f60718293a4b5c6d7e8f9",
    "digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "batch": 1,
    "owner": "model-owner",
    "node": "hospital-a",
    "party": 1,
    "state": "reserved",
    "bytes": 750000000,
    "own_sha256": "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
    "common_sha256": "fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9",
    "expires": "2030-01-01T12:00:00Z",
    "reason": "",
}
_OCTETS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The half", "content": {OCTETS: {}}},
    206: {"description": "The half from a later byte on", "content": {OCTETS: {}}},
}


def _example(value: object) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"application/json": {"example": value}}}}


@router.put(
    "/plans/{plan}",
    summary="Register a plan and the stock of deals to keep for it",
    responses=problems.responses(400, 409, 422),
)
def register_plan(plan: PlanId, offer: PlanOffer, caller: Owner, ctx: Ctx) -> PlanStatus:
    """Draws the seed of the weight mask A once for this identifier; idempotent."""
    parsed = Plan.parse(offer.plan.encode())
    if parsed.digest().hex() != offer.digest:
        raise InvalidInput("The digest is not the plan's.")
    row = store.PlanRow(
        id=plan,
        owner=caller.name,
        digest=offer.digest,
        document=parsed.to_json().decode(),
        stock=offer.stock,
        batch=offer.batch,
        seed=ctx.secrets.seal(Seed.fresh().reveal(), MASK_PURPOSE + plan),
        active=True,
        created=ctx.clock.now(),
    )
    with ctx.db.session() as session:
        store.offer_plan(session, row)
    refill_plan(ctx, plan)
    return _status(ctx, plan)


@router.get("/plans/{plan}", summary="What is held for a plan", responses=problems.responses(404))
def plan_status(plan: PlanId, caller: Owner, ctx: Ctx) -> PlanStatus:
    _own_plan(ctx, plan, caller)
    return _status(ctx, plan)


@router.delete(
    "/plans/{plan}",
    status_code=204,
    summary="Withdraw a plan: its stock is thrown away, no deal is made for it any more",
    responses=problems.responses(404),
)
def withdraw_plan(plan: PlanId, caller: Owner, ctx: Ctx) -> Response:
    _own_plan(ctx, plan, caller)
    with ctx.db.session() as session:
        store.plan(session, plan).active = False
    return Response(status_code=204)


@router.get(
    "/plans/{plan}/mask",
    summary="The seed of the weight mask A, for the weights' owner alone",
    responses=problems.responses(404),
)
def mask(plan: PlanId, caller: Owner, ctx: Ctx, response: Response) -> MaskSeed:
    row = _own_plan(ctx, plan, caller)
    response.headers["Cache-Control"] = "no-store"
    return MaskSeed(seed=encode_key(ctx.secrets.open(row.seed, MASK_PURPOSE + plan)))


def _own_plan(ctx: Context, plan: str, caller: Principal) -> store.PlanRow:
    with ctx.db.reading() as session:
        row = store.plan(session, plan)
    if row.owner != caller.name:
        raise Forbidden("This plan was registered by another model owner.")
    return row


def _status(ctx: Context, plan: str) -> PlanStatus:
    with ctx.db.reading() as session:
        row = store.plan(session, plan)
        ready, making = store.stock_counts(session, plan, row.batch)
    return PlanStatus(
        plan=row.id,
        digest=row.digest,
        owner=row.owner,
        stock=row.stock,
        batch=row.batch,
        ready=ready,
        dealing=making,
        active=row.active,
    )


@router.post(
    "/deals",
    summary="A deal for this node: from the stock, or made on demand (202)",
    response_model=Deal,
    responses={
        **_example(_EXAMPLE_DEAL),
        202: {"model": Deal, "description": "Being made: poll its location"},
        **problems.responses(404, 409, 422, 503, 507),
    },
)
def request_deal(wanted: DealRequest, caller: Node, ctx: Ctx, response: Response) -> Deal:
    row = _reserve(ctx, wanted, caller.name)
    refill_plan(ctx, wanted.plan)
    seen = _seen_by(ctx, row.id, caller)
    response.status_code = 202 if seen.state == "dealing" else 200
    response.headers["Location"] = f"/deals/{row.id}"
    return seen


def _reserve(ctx: Context, wanted: DealRequest, node: str) -> store.DealRow:
    with ctx.db.session() as session:
        plan_row = store.plan(session, wanted.plan, lock=True)  # one taker at a time: the quota
        if not plan_row.active or plan_row.digest != wanted.digest:
            raise Conflict(
                "The plan that is registered here is another one, or was withdrawn.",
                hint="Fetch the plan from the model owner again.",
            )
        _check_quota(ctx, session, node, wanted.ahead)
        expires = ctx.clock.after(ctx.settings.deal_expiry_seconds)
        taker = store.Taker(node, expires, wanted.ahead)
        taken = store.claim(session, plan_row.id, wanted.batch, taker)
        return taken or _promise(ctx, session, plan_row, wanted.batch, taker)


def _check_quota(ctx: Context, session: Session, node: str, ahead: bool) -> None:
    """What a node keeps ahead never counts against its images."""
    settings = ctx.settings
    most = settings.max_kept_deals if ahead else settings.max_open_deals
    if store.open_deals(session, node, ahead) < most:
        return
    if ahead:
        raise Unavailable(
            f"{node} keeps {most} deals ahead already, as many as it may.",
            hint="Lower PRIMIA_PREFETCH there, or have PRIMIA_MAX_KEPT_DEALS raised here. Images "
            "that wait still get their deals.",
            retry_after=60,
        )
    raise Unavailable(
        f"{node} has {most} deals open already.",
        hint="Use or burn them first, or have PRIMIA_MAX_OPEN_DEALS raised here.",
        retry_after=5,
    )


def _promise(
    ctx: Context, session: Session, plan_row: store.PlanRow, batch: int, taker: store.Taker
) -> store.DealRow:
    sizes = Sizes.of(Plan.parse(plan_row.document.encode()), batch)
    cap, share = ctx.settings.max_stock_bytes, ctx.settings.ahead_share if taker.ahead else 1
    check_fits(sizes.disk, int(share * cap))
    held, free = store.held_bytes(session), ctx.files.free_bytes()
    if not affordable(1, sizes.disk, held, cap, free, share):
        raise Unavailable(
            "There is no room for another deal at present.",
            hint="Try again later; unused deals expire.",
            retry_after=30,
        )
    row = store.new_deal(session, plan_row, batch, sizes, ctx.clock.now(), taker)
    ctx.jobs.enqueue_after(session, "material.deal", row.id)
    return row


@router.get(
    "/deals/{deal}",
    summary="A deal as its party sees it; `wait` holds the answer while it is being made",
    responses={**_example(_EXAMPLE_DEAL), **problems.responses(404)},
)
async def read_deal(deal: DealId, caller: Party, ctx: Ctx, wait: Wait = 0) -> Deal:
    return await until(
        lambda: _seen_by(ctx, deal, caller), lambda found: found.state != "dealing", wait
    )


@router.get(
    "/deals/{deal}/half",
    summary="The caller's half, once; an interrupted download is resumed with a Range header",
    response_class=StreamingResponse,
    responses={**_OCTETS, **problems.responses(404, 409, 410, 422)},
)
async def download_half(
    deal: DealId,
    caller: Party,
    ctx: Ctx,
    range_header: Annotated[
        str | None, Header(alias="Range", description="`bytes=N-`, N the bytes already held")
    ] = None,
) -> StreamingResponse:
    found = await run_sync(downloads.begin, ctx, deal, caller.name, range_header)
    headers = {
        "Content-Length": str(found.size - found.start),
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-store",
    }
    if found.start:
        headers["Content-Range"] = f"bytes {found.start}-{found.size - 1}/{found.size}"
    status = 206 if found.start else 200
    return StreamingResponse(found.pieces(), status, headers, media_type=OCTETS)


@router.post(
    "/deals/{deal}/received",
    summary="Confirm that the caller's half has come whole; after both, the deal is spent",
    responses={**_example(_EXAMPLE_DEAL), **problems.responses(404, 409, 410)},
)
def confirm_half(deal: DealId, caller: Party, ctx: Ctx) -> Deal:
    downloads.confirm(ctx, deal, caller.name)
    return _seen_by(ctx, deal, caller)


@router.delete(
    "/deals/{deal}",
    status_code=204,
    summary="Burn a deal: what broke is never used again",
    responses=problems.responses(404),
)
def burn_deal(deal: DealId, caller: Party, ctx: Ctx) -> Response:
    downloads.burn(ctx, deal, caller.name)
    return Response(status_code=204)


_PUBLIC: dict[str, DealState] = {
    "promised": "dealing",
    "reserved": "reserved",
    "spent": "spent",
    "failed": "failed",
}


def _seen_by(ctx: Context, deal_id: str, caller: Principal) -> Deal:
    with ctx.db.reading() as session:
        row = store.deal(session, deal_id)
        digest = store.plan(session, row.plan).digest
    party = row.parties().index(caller.name)
    if row.node is None:
        raise Forbidden("This deal lies in the stock: it belongs to nobody yet.")
    return Deal(
        id=row.id,
        plan=row.plan,
        digest=digest,
        batch=row.batch,
        owner=row.owner,
        node=row.node,
        party=1 if party else 0,
        state=_PUBLIC[row.state],
        bytes=row.bytes_of(party),
        own_sha256=row.sha_of(party),
        common_sha256=row.sha_common,
        expires=row.expires,
        reason=row.reason,
    )
