"""Routes for this node's users: ask for an encrypted inference, follow it, read its result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Query, Request, Response
from sse_starlette import EventSourceResponse

from primia.chassis.auth import require
from primia.chassis.context import Context, Ctx
from primia.chassis.events import Event, sse
from primia.chassis.identity import Principal
from primia.chassis.problems import responses
from primia.chassis.telemetry import get_logger
from primia.errors import Conflict, InvalidInput
from primia.messages.common import Id
from primia.messages.inference import (
    InferenceList,
    InferenceRequest,
    InferenceResult,
    InferenceStatus,
    KeptList,
    ServedModel,
    ServedModels,
)
from primia.prg import fresh_bytes
from services.data_node.inference import kept, planner, store, tasks, upload
from services.data_node.inference.domain import ENDED, State, admissible, choose
from services.data_node.inference.served import served_models

log = get_logger(__name__)
router = APIRouter(prefix="/inference", tags=["encrypted inference"])
User = Annotated[Principal, Depends(require("user"))]

_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["model", "images"],
    "properties": {
        "model": {"type": "string", "examples": ["chest"]},
        "version": {"type": "integer", "minimum": 1},
        "result": {"type": "string", "enum": ["scores", "label"], "default": "label"},
        "protocol": {"type": "string", "enum": ["fss", "securenn", "auto"], "default": "fss"},
        "accuracy": {"type": "string", "enum": ["exact", "calibrated"], "default": "exact"},
        "images": {"type": "array", "items": {"type": "string", "format": "binary"}},
    },
}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _FORM},
            "application/json": {
                "schema": InferenceRequest.model_json_schema(),
                "example": {
                    "model": "chest",
                    "result": "scores",
                    "dataset": "clinic",
                    "images": ["pneumonia/0001.png"],
                },
            },
        },
    }
}


@router.post(
    "",
    status_code=202,
    summary="Have images classified, encrypted from end to end",
    responses=responses(404, 409, 413, 422, 502, 503),
    openapi_extra=_BODY,
)
async def create(request: Request, user: User, ctx: Ctx, response: Response) -> InferenceStatus:
    """Send image files as a form, or name images of a registered data set as JSON. A bad image or
    an unknown model is refused at once, before any material is used."""
    media = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    settings = ctx.settings
    if media == "multipart/form-data":
        asked = await upload.read_upload(request, settings.max_image_bytes, settings.max_batch)
    elif media == "application/json":
        named = upload.read_json(await request.body())
        asked = await run_sync(upload.from_dataset, ctx, named)
    else:
        raise InvalidInput("The body is neither a form with images nor JSON.")
    status = await run_sync(_create, ctx, asked, user.name)
    response.headers["Location"] = f"/inference/{status.id}"
    return status


def _create(ctx: Context, asked: upload.Asked, user: str) -> InferenceStatus:
    wanted = asked.wanted
    if wanted.protocol == "securenn" and wanted.accuracy != "exact":
        raise InvalidInput("SecureNN compares whole values.", hint="Ask for accuracy 'exact'.")
    choice = _choice(ctx, wanted, len(asked.pictures))
    planner.check_memory(ctx, choice, len(asked.pictures))
    model, plan = choice.model, choice.plan
    pixels = upload.pixels(asked.pictures, model.card)
    inference_id = fresh_bytes(16).hex()
    chosen = ServedModel(card=model.card, plans=(plan,))
    now = ctx.clock.now()
    row = store.Inference(
        id=inference_id,
        user=user,
        model=model.card.name,
        version=model.card.version,
        result=wanted.result,
        images=[picture.name for picture in asked.pictures],
        served={
            "model": chosen.model_dump_json(),
            "protocol": choice.protocol,
            "chosen": choice.why,
        },
        state=State.QUEUED.value,
        cost={},
        phase="",
        step=0,
        steps=0,
        tries=0,
        reason="",
        pixels=ctx.secrets.seal(pixels.tobytes(), tasks.pixels_purpose(inference_id)),
        created=now,
    )
    with ctx.db.session() as session:
        store.add(session, row)
        ctx.jobs.enqueue_after(session, tasks.RUN, inference_id)
    return row.status()


def _choice(ctx: Context, wanted: upload.Wanted, batch: int) -> planner.Choice:
    named = wanted.model, wanted.version, wanted.result
    model, plan = choose(served_models(ctx).models, *named, wanted.accuracy)
    if wanted.protocol != "auto":
        return planner.Choice(model, plan, wanted.protocol, 0.0)
    return planner.decide(ctx, model, admissible(model, plan), batch)


@router.get("", summary="List the inferences, newest first", responses=responses(422))
def listing(
    _user: User, ctx: Ctx, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> InferenceList:
    with ctx.db.reading() as session:
        found = tuple(row.status() for row in store.newest(session, limit))
    return InferenceList(inferences=found)


@router.get("/models", summary="What the model owner serves", responses=responses(502, 503))
def models(_user: User, ctx: Ctx) -> ServedModels:
    return served_models(ctx)


@router.get(
    "/kept",
    summary="The material that is kept ahead of images (PRIMIA_PREFETCH)",
    responses=responses(),
)
def kept_ahead(_user: User, ctx: Ctx) -> KeptList:
    return kept.listing(ctx)


@router.get("/{inference_id}", summary="How an inference goes", responses=responses(404, 422))
def show(inference_id: Id, _user: User, ctx: Ctx) -> InferenceStatus:
    with ctx.db.reading() as session:
        return store.find(session, inference_id).status()


@router.get(
    "/{inference_id}/events",
    summary="Follow an inference (server-sent events)",
    response_class=EventSourceResponse,
    responses={
        **responses(404, 422),
        200: {
            "description": "Kinds: state, attempt, waiting, progress, retry. Data: the status.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
    },
)
def events(inference_id: Id, _user: User, ctx: Ctx, request: Request) -> Response:
    """Give Last-Event-ID to go on where a connection broke off."""

    def after(last: int) -> Sequence[Event]:
        with ctx.db.reading() as session:
            return [_event(row) for row in store.events_after(session, inference_id, last)]

    with ctx.db.reading() as session:
        over = store.find(session, inference_id).state in ENDED
    return sse(request, after, over)


def _event(row: store.InferenceEvent) -> Event:
    status = InferenceStatus.model_validate(row.data)
    ended = status.state in ("done", "failed", "cancelled")
    return Event(row.id, row.kind, status.model_dump_json(), row.kind == "state" and ended)


@router.get(
    "/{inference_id}/result",
    summary="The labels, and the scores where they were asked for",
    responses=responses(404, 409, 422),
)
def result(inference_id: Id, _user: User, ctx: Ctx, response: Response) -> InferenceResult:
    with ctx.db.reading() as session:
        row = store.find(session, inference_id)
    if row.outcome is None:
        because = f": {row.reason}" if row.reason else ""
        raise Conflict(
            f"The inference is {row.state}{because}.",
            hint=None if store.is_ended(row) else "Wait until it is done.",
        )
    response.headers["Cache-Control"] = "no-store"
    opened = ctx.secrets.open(row.outcome, tasks.outcome_purpose(inference_id))
    return InferenceResult.model_validate_json(opened)


@router.delete(
    "/{inference_id}",
    status_code=204,
    summary="Cancel an inference; of one that has ended, delete the result",
    responses=responses(404, 422),
)
def remove(inference_id: Id, _user: User, ctx: Ctx) -> Response:
    """A running one stops before its next step; its material is burned."""
    with ctx.db.session() as session:
        row = store.find(session, inference_id, lock=True)
        if store.is_ended(row):
            store.remove(session, row)
        else:
            store.cancel(session, row, ctx.clock.now())
            ctx.jobs.enqueue_after(session, tasks.BURN, inference_id)
    return Response(status_code=204)
