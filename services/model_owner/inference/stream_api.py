"""Routes for data nodes: inference by SecureNN, a session over one stream each way."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request, Response
from fastapi.responses import StreamingResponse

from primia.chassis import stream_host
from primia.chassis.auth import require
from primia.chassis.context import Ctx
from primia.chassis.identity import Principal
from primia.chassis.limits import STREAM
from primia.chassis.problems import responses
from primia.errors import Conflict
from primia.messages.common import Id
from primia.messages.securenn import StreamRequest, StreamSession
from primia.mpc.plan import Plan
from primia.mpc.securenn.layout import check_memory
from services.model_owner.inference import store, streams
from services.model_owner.inference.domain import ServingState

router = APIRouter(prefix="/inference/streams", tags=["encrypted inference: data nodes"])
Node = Annotated[Principal, Depends(require("data_node"))]

_STREAM: dict[str, Any] = {"content": {STREAM: {"schema": {"type": "string", "format": "binary"}}}}
_SAID: dict[str, Any] = {"description": "Raw bytes (primia.mpc.securenn)", **_STREAM}
_EXAMPLES: Any = {
    "one image": {
        "value": {
            "plan": "0a1b2c3d4e5f60718293a4b5c6d7e8f9",
            "digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "assistance": "5d0f3f2c9a1e4b7d8c6a5e4f3d2c1b0a",
            "batch": 1,
        }
    }
}


@router.post(
    "",
    status_code=201,
    summary="Open a session of SecureNN with the crypto provider's assistance",
    responses=responses(404, 409, 422, 503),
)
def open_stream(
    wanted: Annotated[StreamRequest, Body(openapi_examples=_EXAMPLES)], node: Node, ctx: Ctx
) -> StreamSession:
    """This service joins the crypto provider's session; the node then opens its stream here."""
    with ctx.db.reading() as session:
        row = store.serving(session, wanted.plan)
    if row.state != ServingState.SERVING.value or row.digest != wanted.digest:
        raise Conflict(
            "This plan is not served, or is another one.",
            hint="GET /inference/models lists what is served.",
        )
    plan = Plan.parse((row.document or "").encode())
    check_memory(plan, wanted.batch, ctx.settings.max_stream_bytes)
    opened = streams.open_session(ctx, wanted, node.name)
    return StreamSession(
        id=opened, plan=wanted.plan, assistance=wanted.assistance, batch=wanted.batch
    )


@router.put(
    "/{session_id}/stream",
    status_code=204,
    summary="What the node says, as long as the session lasts",
    response_class=Response,
    responses=responses(404, 409),
    openapi_extra={"requestBody": {"required": True, **_STREAM}},
)
async def hear(session_id: Id, request: Request, node: Node, ctx: Ctx) -> Response:
    return await stream_host.upload(request, streams.host(ctx).stream(session_id, node.name))


@router.get(
    "/{session_id}/stream",
    summary="What the model owner says, as long as the session lasts",
    response_class=StreamingResponse,
    responses={200: _SAID, **responses(404, 409)},
)
def say(session_id: Id, node: Node, ctx: Ctx) -> StreamingResponse:
    return stream_host.download(streams.host(ctx).stream(session_id, node.name))
