"""Routes of the online assistant: sessions of SecureNN with this service as the third party."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Request, Response
from fastapi.responses import StreamingResponse

from primia.chassis import stream_host
from primia.chassis.auth import require
from primia.chassis.context import Context, Ctx
from primia.chassis.duplex import ServedStream, require_joined
from primia.chassis.identity import Principal
from primia.chassis.limits import STREAM
from primia.chassis.problems import responses
from primia.chassis.stream_host import StreamHost
from primia.errors import Conflict
from primia.messages.common import Id
from primia.messages.securenn import Assistance, AssistanceRequest
from primia.mpc import linear_maps
from primia.mpc.plan import Plan
from primia.mpc.securenn import ring64
from primia.mpc.securenn.assistant import Assistant
from primia.mpc.securenn.driver import carry
from primia.mpc.securenn.layout import check_memory
from primia.mpc.securenn.wire import CLIENT, OWNER
from primia.prg import Seed
from services.crypto_provider.material import store
from services.crypto_provider.material.tasks import MASK_PURPOSE

router = APIRouter(prefix="/assistances", tags=["assistance"])
Node = Annotated[Principal, Depends(require("data_node"))]
Party = Annotated[Principal, Depends(require("model_owner", "data_node"))]
AssistanceId = Annotated[Id, Path(description="from `POST /assistances`")]

_HOST = "assistance.host"
_JOIN_SECONDS = 60.0
# A slow line takes long over a round of a large batch.
_SILENCE_SECONDS = 300.0
_STREAM: dict[str, Any] = {"content": {STREAM: {"schema": {"type": "string", "format": "binary"}}}}
_SAID: dict[str, Any] = {"description": "Raw bytes (primia.mpc.securenn)", **_STREAM}
_EXAMPLES: Any = {
    "one image": {
        "value": {
            "plan": "0a1b2c3d4e5f60718293a4b5c6d7e8f9",
            "digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "batch": 1,
        }
    }
}


def _host(ctx: Context) -> StreamHost:
    limit = ctx.settings.max_assistances
    host: StreamHost = ctx.extras.setdefault(_HOST, StreamHost(limit, limit))
    return host


@router.post(
    "",
    status_code=201,
    summary="Take part in one session of SecureNN; both parties then open their streams",
    responses=responses(404, 409, 422, 503),
)
def open_assistance(
    wanted: Annotated[AssistanceRequest, Body(openapi_examples=_EXAMPLES)], caller: Node, ctx: Ctx
) -> Assistance:
    with ctx.db.reading() as session:
        row = store.plan(session, wanted.plan)
    if not row.active or row.digest != wanted.digest:
        raise Conflict(
            "The plan that is registered here is another one, or was withdrawn.",
            hint="Fetch the plan from the model owner again.",
        )
    mask = Seed(ctx.secrets.open(row.seed, MASK_PURPOSE + row.id))
    plan = Plan.parse(row.document.encode())
    check_memory(plan, wanted.batch, ctx.settings.max_stream_bytes)
    assistant = Assistant(plan, wanted.batch, mask, linear_maps.linear_map64(ctx.settings.kernel))
    streams = {name: ServedStream(_SILENCE_SECONDS) for name in (row.owner, caller.name)}
    links = {OWNER: streams[row.owner], CLIENT: streams[caller.name]}

    def work() -> None:
        ring64.load(ctx.settings.threads)
        for stream in streams.values():
            require_joined(stream, _JOIN_SECONDS)
        carry(assistant.prepare(), links)
        carry(assistant.run(), links)

    named = {"plan": row.id, "digest": row.digest, "batch": wanted.batch}
    named |= {"owner": row.owner, "node": caller.name}
    opened = _host(ctx).open(caller.name, streams, work, named)
    return Assistance(id=opened, **named)


@router.get(
    "/{assistance}",
    summary="What an open session is for, asked by one of its parties",
    responses=responses(404),
)
def show(assistance: AssistanceId, caller: Party, ctx: Ctx) -> Assistance:
    """A party compares it with its own plan before it opens its stream."""
    return Assistance(id=assistance, **_host(ctx).about(assistance, caller.name))


@router.put(
    "/{assistance}/stream",
    status_code=204,
    summary="What a party says, as long as the session lasts",
    response_class=Response,
    responses=responses(404, 409),
    openapi_extra={"requestBody": {"required": True, **_STREAM}},
)
async def hear(assistance: AssistanceId, request: Request, caller: Party, ctx: Ctx) -> Response:
    return await stream_host.upload(request, _host(ctx).stream(assistance, caller.name))


@router.get(
    "/{assistance}/stream",
    summary="What this service says to a party, as long as the session lasts",
    response_class=StreamingResponse,
    responses={200: _SAID, **responses(404, 409)},
)
def say(assistance: AssistanceId, caller: Party, ctx: Ctx) -> StreamingResponse:
    return stream_host.download(_host(ctx).stream(assistance, caller.name))
