"""Routes for data nodes: what is served, the plan and the opening, sessions and their steps."""

from __future__ import annotations

from typing import Annotated, Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Body, Depends, Path, Request, Response
from fastapi.responses import FileResponse
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session as Transaction

from primia.chassis.auth import require
from primia.chassis.context import Context, Ctx
from primia.chassis.identity import Principal
from primia.chassis.large_files import LargeFile
from primia.chassis.problems import responses
from primia.chassis.waiting import Wait, until
from primia.errors import Conflict, NotFound, Unavailable
from primia.messages.common import Id, ModelCard, Name
from primia.messages.inference import (
    MAX_SERVED,
    OCTETS,
    Accuracy,
    Result,
    ServedModel,
    ServedModels,
    ServedPlan,
    Session,
    SessionRequest,
)
from primia.mpc.costs import check_memory
from primia.mpc.plan import Plan
from primia.prg import fresh_bytes
from services.model_owner.inference import forward, kept, models, sessions, store
from services.model_owner.inference.domain import (
    AHEAD_SESSIONS,
    ServingState,
    SessionEvent,
    SessionState,
)
from services.model_owner.inference.listener import read_body
from services.model_owner.registry import store as registry

router = APIRouter(prefix="/inference", tags=["encrypted inference: data nodes"])
Node = Annotated[Principal, Depends(require("data_node"))]
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]
StepNumber = Annotated[int, Path(ge=0, le=100_000, description="from 0; one a gate, one at last")]

_MOVING = ("keeping", "preparing")
_THREADS = "inference.threads"
_BINARY: dict[int | str, dict[str, Any]] = {
    200: {"description": "Raw bytes (primia.mpc)", "content": {OCTETS: {}}}
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {OCTETS: {"schema": {"type": "string", "format": "binary"}}},
    }
}
_EXAMPLES: Any = {
    "one image": {
        "value": {
            "plan": "0a1b2c3d4e5f60718293a4b5c6d7e8f9",
            "digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "deal": "5d0f3f2c9a1e4b7d8c6a5e4f3d2c1b0a",
            "batch": 1,
        }
    },
    "ahead of an image": {
        "value": {
            "plan": "0a1b2c3d4e5f60718293a4b5c6d7e8f9",
            "digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "deal": "5d0f3f2c9a1e4b7d8c6a5e4f3d2c1b0a",
            "ahead": True,
        }
    },
}


@router.get("/models", summary="What is served to data nodes", responses=responses())
def served(_node: Node, ctx: Ctx) -> ServedModels:
    """Public descriptions and digests; weights are never given."""
    grouped: dict[tuple[str, int], list[store.CompiledPlanRow]] = {}
    limit = ctx.settings.max_session_bytes
    with ctx.db.reading() as session:
        for row in store.served(session, MAX_SERVED):
            if models.largest_batch(row.document or "", limit) is not None:
                grouped.setdefault((row.model, row.version), []).append(row)
        found = tuple(_served(session, rows, limit) for rows in grouped.values())
    return ServedModels(models=found)


def _served(session: Transaction, rows: list[store.CompiledPlanRow], limit: int) -> ServedModel:
    version = registry.find_version(session, rows[0].model, rows[0].version)
    spec = registry.spec_at(registry.find_model(session, rows[0].model), version)
    card = ModelCard(
        name=version.model,
        version=version.version,
        architecture=spec.architecture,
        classes=spec.classes,
        channels=spec.channels,
        image_size=spec.image_size,
        norm=spec.norm,
        mean=spec.mean,
        deviation=spec.std,
        digest=version.digest or "",
        program=spec.program.digest if spec.program else None,
        layout=spec.layout_digest,
    )
    return ServedModel(card=card, plans=tuple(_plan(row, limit) for row in rows))


def _plan(row: store.CompiledPlanRow, limit: int) -> ServedPlan:
    return ServedPlan.model_validate(
        {
            "plan": row.id,
            "result": row.result,
            "accuracy": row.accuracy,
            "agreement": row.agreement,
            "digest": row.digest,
            "opening_bytes": row.opening_bytes,
            "opening_sha256": row.opening_sha256,
            "batch": row.batch,
            "largest_batch": models.largest_batch(row.document or "", limit),
        }
    )


def _find(
    ctx: Context, name: str, version: int, result: Result, accuracy: Accuracy
) -> store.CompiledPlanRow:
    with ctx.db.reading() as session:
        row = store.serving_of(session, name, version, result, accuracy)
    if row is None or row.state != ServingState.SERVING.value:
        raise NotFound(
            f"Version {version} of {name} is not served with the result {result}, {accuracy}.",
            hint="GET /inference/models lists what is served.",
        )
    return row


@router.get(
    "/models/{name}/versions/{version}/plan",
    summary="The public plan, canonical JSON: the node checks its digest",
    response_class=Response,
    responses={
        200: {"description": "The plan", "content": {"application/json": {}}},
        **responses(404, 422),
    },
)
def plan(
    name: Name,
    version: Number,
    result: Result,
    _node: Node,
    ctx: Ctx,
    accuracy: Accuracy = "exact",
) -> Response:
    row = _find(ctx, name, version, result, accuracy)
    return Response(row.document, media_type="application/json")


@router.get(
    "/models/{name}/versions/{version}/opening",
    summary="The masked weights E = W - A, once for each plan",
    response_class=FileResponse,
    responses={**_BINARY, **responses(404, 422)},
)
def opening(
    name: Name,
    version: Number,
    result: Result,
    _node: Node,
    ctx: Ctx,
    accuracy: Accuracy = "exact",
) -> FileResponse:
    """Resumable with a Range header; uniform to whoever has it."""
    row = _find(ctx, name, version, result, accuracy)
    return LargeFile(models.opening_path(ctx.files, row.id), media_type=OCTETS)


@router.post(
    "/sessions",
    status_code=202,
    summary="Open a session for a deal; follow it until it is ready",
    responses=responses(404, 409, 422, 503, 507),
)
def open_session(
    wanted: Annotated[SessionRequest, Body(openapi_examples=_EXAMPLES)],
    node: Node,
    ctx: Ctx,
    response: Response,
) -> Session:
    """A deal has one session: asking again for the same yields the same. With `ahead` the material
    alone is fetched and kept, until the session is asked for without."""
    try:
        row = _row(ctx, wanted, node.name)
    except IntegrityError as error:
        raise Conflict("A session was opened for this deal at the same moment.") from error
    response.headers["Location"] = f"/inference/sessions/{row.id}"
    return _view(row)


def _row(ctx: Context, wanted: SessionRequest, node: str) -> store.SessionRow:
    with ctx.db.session() as session:
        known = store.session_of_deal(session, wanted.deal)
        asked = (node, wanted.plan, wanted.batch)
        if known is not None and (known.node, known.plan, known.batch) != asked:
            raise Conflict("This deal has a session already.")
        if known is not None and (wanted.ahead or SessionState(known.state) not in AHEAD_SESSIONS):
            return known
        plan_row = store.serving(session, wanted.plan)
        if plan_row.state != ServingState.SERVING.value or plan_row.digest != wanted.digest:
            raise Conflict(
                "This plan is not served, or is another one.",
                hint="GET /inference/models lists what is served.",
            )
        plan = Plan.parse((plan_row.document or "").encode())
        check_memory(plan, wanted.batch, ctx.settings.max_session_bytes)
        if wanted.ahead:
            kept.require_room(ctx, session, node, kept.disk_size(plan, wanted.batch))
        else:
            _require_room(ctx, session, node)
        row = known or _new_row(ctx, session, wanted, node, plan)
        if known is not None:
            row.advance(SessionEvent.ASKED)
            row.alive_until = ctx.clock.after(sessions.PREPARE_SECONDS)
        ctx.jobs.enqueue_after(session, kept.KEEP if wanted.ahead else "inference.open", row.id)
        return row


def _require_room(ctx: Context, session: Transaction, node: str) -> None:
    full = store.live_sessions(session) >= ctx.settings.max_sessions
    if full or store.live_sessions(session, node) >= ctx.settings.max_sessions_a_node:
        raise Unavailable(
            "As many sessions as this service keeps (in all, or for a node) are open already.",
            hint="Try again shortly; the deal stays yours.",
            retry_after=2,
        )


def _new_row(
    ctx: Context, session: Transaction, wanted: SessionRequest, node: str, plan: Plan
) -> store.SessionRow:
    ahead = wanted.ahead
    row = store.SessionRow(
        id=fresh_bytes(16).hex(),
        plan=wanted.plan,
        node=node,
        deal=wanted.deal,
        batch=wanted.batch,
        state=(SessionState.KEEPING if ahead else SessionState.PREPARING).value,
        largest_body=sessions.largest_body(plan, wanted.batch),
        created=ctx.clock.now(),
        alive_until=ctx.clock.after(sessions.PREPARE_SECONDS),
        expires=ctx.clock.after(ctx.settings.kept_seconds) if ahead else None,
        size_bytes=kept.disk_size(plan, wanted.batch) if ahead else 0,
    )
    session.add(row)
    session.flush()
    return row


@router.get(
    "/sessions/{session_id}",
    summary="A session's state; `wait` holds the answer while it is fetched or prepared",
    responses=responses(404, 422),
)
async def show_session(session_id: Id, node: Node, ctx: Ctx, wait: Wait = 0) -> Session:
    def load() -> Session:
        return _view(_find_session(ctx, session_id, node.name))

    return await until(load, lambda found: found.state not in _MOVING, wait)


@router.put(
    "/sessions/{session_id}/offline",
    summary="The message that does not depend on the image; before step 0",
    response_class=Response,
    responses={**_BINARY, **responses(400, 404, 409, 410, 413, 503)},
    openapi_extra=_BODY,
)
async def offline(session_id: Id, request: Request, node: Node, ctx: Ctx) -> Response:
    """Of a session that was asked for ahead, it is kept with the material."""
    row = await run_sync(_find_session, ctx, session_id, node.name)
    if SessionState(row.state) in AHEAD_SESSIONS:
        body = await read_body(request, row.largest_body)
        answer = await run_sync(kept.take_offline, ctx, row, body)
        return Response(answer, media_type=OCTETS)
    return await _pass_on(ctx, request, session_id, node.name, "/offline")


@router.put(
    "/sessions/{session_id}/steps/{number}",
    summary="One step of party 1, answered by party 0; the latest one may be repeated",
    response_class=Response,
    responses={**_BINARY, **responses(400, 404, 409, 410, 413, 503)},
    openapi_extra=_BODY,
)
async def step(
    session_id: Id, number: StepNumber, request: Request, node: Node, ctx: Ctx
) -> Response:
    """The same bytes again get the stored answer; other bytes for an answered step, or a step out
    of order, are a 409 and change nothing."""
    return await _pass_on(ctx, request, session_id, node.name, f"/steps/{number}")


async def _pass_on(
    ctx: Context, request: Request, session_id: str, node: str, path: str
) -> Response:
    target = forward.known(ctx).get(session_id, node)
    if target is None:
        target = await run_sync(forward.find, ctx, session_id, node)
    body = await read_body(request, target.largest_body, forward.Upload(ctx, target).came)
    # A thread waits while the worker computes: of a number of their own, so that steps never take
    # all the threads that the other routes need.
    threads = ctx.extras.setdefault(_THREADS, CapacityLimiter(ctx.settings.max_sessions))
    answer = await run_sync(forward.send, ctx, target, "PUT", path, body, limiter=threads)
    return Response(answer.content, answer.status, media_type=answer.media)


@router.delete(
    "/sessions/{session_id}",
    status_code=204,
    summary="End a session and burn its deal",
    responses=responses(404),
)
def end_session(session_id: Id, node: Node, ctx: Ctx) -> Response:
    row = _find_session(ctx, session_id, node.name)
    if row.state == SessionState.READY.value:
        forward.send(ctx, forward.find(ctx, session_id, node.name), "DELETE", "")
    else:
        sessions.broke(ctx, session_id, "the data node ended it")
    return Response(status_code=204)


def _find_session(ctx: Context, session_id: str, node: str) -> store.SessionRow:
    with ctx.db.reading() as session:
        return store.session_of(session, session_id, node)


def _view(row: store.SessionRow) -> Session:
    own = {field: getattr(row, field) for field in Session.model_fields}
    return Session.model_validate({**own, "offline": row.offline is not None})
