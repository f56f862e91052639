"""Routes for data nodes: work, weights, answers. Each sees and answers its own place only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import FileResponse
from sqlalchemy.exc import IntegrityError

from primia.chassis.auth import require
from primia.chassis.context import Context, Ctx
from primia.chassis.identity import Principal
from primia.chassis.large_files import LargeFile
from primia.chassis.problems import responses
from primia.errors import UnexpectedMessage
from primia.messages.common import Id, Name
from primia.messages.rounds import (
    MAX_ROUNDS,
    Confirmation,
    Decision,
    Envelopes,
    Evaluation,
    EvaluationReport,
    Failure,
    MeasureReport,
    Shares,
    TrainReport,
    WorkItem,
)
from services.model_owner.registry import store as registry
from services.model_owner.rounds import answers, items, limits, store
from services.model_owner.rounds.answers import ASK_AGAIN, Place
from services.model_owner.rounds.news import news
from services.model_owner.rounds.tables import Contribution
from services.model_owner.rounds.uploads import receive_update

Node = Annotated[Principal, Depends(require("data_node"))]
Number = Annotated[int, Path(ge=1, le=MAX_ROUNDS + 1)]
BINARY = "application/octet-stream"

router = APIRouter(tags=["data nodes"], dependencies=[Depends(require("data_node"))])
_TAKEN: dict[str, Any] = {"status_code": 204, "responses": responses(400, 404, 409, 413, 422)}


@router.get(
    "/node/work",
    summary="Wait for work",
    response_model=WorkItem,
    responses={**responses(422), 204: {"description": "Nothing to do; ask again"}},
)
async def work(
    ctx: Ctx,
    node: Node,
    request: Request,
    wait: Annotated[float, Query(ge=0, le=60, description="seconds to wait at most")] = 0,
) -> Any:
    """The one item that the owner waits for, the same one again until it has been answered."""
    until = time.monotonic() + min(wait, ctx.settings.poll_seconds)
    await run_sync(_visited, ctx, node.name)
    while True:
        known = await news(ctx).newest()
        item = await run_sync(_work, ctx, node.name)
        if item is not None:
            return Response(item.model_dump_json(), media_type="application/json")
        left = until - time.monotonic()
        if left <= 0 or ctx.jobs.stopping() or await request.is_disconnected():
            return Response(status_code=204)
        await news(ctx).newer(known, left)


def _visited(ctx: Context, node: str) -> None:
    # Two first visits at once: one of them is enough.
    with contextlib.suppress(IntegrityError), ctx.db.session() as session:
        registry.visited(session, node, ctx.clock.now())


def _work(ctx: Context, node: str) -> WorkItem | None:
    with ctx.db.reading() as session:
        return items.work_for(ctx, session, node)


@router.get(
    "/rounds/{run}/{round}/weights",
    summary="The global model that a round starts from (safetensors)",
    response_class=FileResponse,
    responses={
        **responses(404, 409, 422),
        200: {"content": {BINARY: {}}, "description": "A safetensors file"},
        206: {"content": {BINARY: {}}, "description": "The range asked for"},
    },
)
def weights(
    ctx: Ctx, node: Node, run: Id, number: Annotated[int, Path(ge=1, alias="round")]
) -> FileResponse:
    """Only while the node is asked to train on it or to evaluate it."""
    with ctx.db.session() as session:
        here = answers.place(ctx, session, run, node.name)
        if number != here.run.number or here.wanted() not in ("train", "evaluate"):
            raise UnexpectedMessage(
                f"{node.name} is not asked to work with the weights of round {number}.",
                hint=ASK_AGAIN,
            )
        row = store.present_round(session, here.run)
        if row is not None:
            place = session.get_one(Contribution, (row.id, node.name))
            place.bytes_down += here.run.weights_bytes
        return LargeFile(ctx.files.root / here.run.weights, media_type=BINARY)


@router.get(
    "/rounds/{run}/models/{name}",
    summary="Another model to evaluate (safetensors)",
    response_class=FileResponse,
    responses={
        **responses(404, 409, 422),
        200: {"content": {BINARY: {}}, "description": "A safetensors file"},
        206: {"content": {BINARY: {}}, "description": "The range asked for"},
    },
)
def other_model(ctx: Ctx, node: Node, run: Id, name: Name) -> FileResponse:
    """Only while the node is asked to evaluate it."""
    with ctx.db.session() as session:
        here = answers.place(ctx, session, run, node.name)
        found = {each.name: each for each in store.others(here.run)}
        if name not in found or here.wanted() != "evaluate":
            raise UnexpectedMessage(
                f"{node.name} is not asked to evaluate a model {name}.", hint=ASK_AGAIN
            )
        return LargeFile(ctx.files.root / found[name].path, media_type=BINARY)


def _answer(ctx: Context, run: str, node: Principal, give: Callable[[Place], None]) -> None:
    with ctx.db.session() as session:
        give(answers.place(ctx, session, run, node.name))


@router.put("/rounds/{run}/decision", summary="Accept or refuse a run", **_TAKEN)
def decide(ctx: Ctx, node: Node, run: Id, message: Decision) -> None:
    _answer(ctx, run, node, lambda here: answers.decide(here, message))


@router.put("/rounds/{run}/{round}/report", summary="Report local training", **_TAKEN)
def report(
    ctx: Ctx,
    node: Node,
    run: Id,
    number: Annotated[Number, Path(alias="round")],
    message: TrainReport,
    request: Request,
) -> None:
    limits.prepare(ctx, run)
    _answer(ctx, run, node, lambda here: answers.report(here, number, message, _size(request)))


@router.put("/rounds/{run}/{round}/measured", summary="Be ready to sum statistics", **_TAKEN)
def measured(
    ctx: Ctx,
    node: Node,
    run: Id,
    number: Annotated[Number, Path(alias="round")],
    message: MeasureReport,
    request: Request,
) -> None:
    _answer(ctx, run, node, lambda here: answers.measured(here, number, message, _size(request)))


@router.put("/rounds/{run}/{round}/evaluated", summary="Be ready to sum figures", **_TAKEN)
def ready_to_sum(
    ctx: Ctx,
    node: Node,
    run: Id,
    number: Annotated[Number, Path(alias="round")],
    message: EvaluationReport,
    request: Request,
) -> None:
    _answer(
        ctx, run, node, lambda here: answers.ready_to_sum(here, number, message, _size(request))
    )


def _size(request: Request) -> int:
    """Bytes of a JSON body, as announced; chunked ones are counted as none."""
    announced = request.headers.get("Content-Length", "0")
    return int(announced) if announced.isdigit() else 0


@router.put("/rounds/{run}/{round}/envelopes", summary="Deal sealed shares of the keys", **_TAKEN)
def share(
    ctx: Ctx,
    node: Node,
    run: Id,
    number: Annotated[Number, Path(alias="round")],
    message: Envelopes,
    request: Request,
) -> None:
    """One envelope for every node of the roster, sealed for it alone."""
    _answer(ctx, run, node, lambda here: answers.share(here, number, message, _size(request)))


@router.put(
    "/rounds/{run}/{round}/update",
    summary="Upload the update",
    status_code=204,
    responses=responses(400, 404, 409, 413, 422, 507),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def upload(
    ctx: Ctx,
    node: Node,
    run: Id,
    number: Annotated[Number, Path(alias="round")],
    request: Request,
) -> None:
    """36 bytes of header, then the values: uint32 if masked (behind masked uint64 where figures are
    summed), float32 if plain, uint64 if the round sums integers."""
    await receive_update(ctx, request, run, number, node.name)


@router.put("/rounds/{run}/{round}/confirmation", summary="Confirm the survivors", **_TAKEN)
def confirm(
    ctx: Ctx,
    node: Node,
    run: Id,
    number: Annotated[Number, Path(alias="round")],
    message: Confirmation,
    request: Request,
) -> None:
    _answer(ctx, run, node, lambda here: answers.confirm(here, number, message, _size(request)))


@router.put("/rounds/{run}/{round}/shares", summary="Reveal shares to open the sum", **_TAKEN)
def reveal(
    ctx: Ctx,
    node: Node,
    run: Id,
    number: Annotated[Number, Path(alias="round")],
    message: Shares,
    request: Request,
) -> None:
    _answer(ctx, run, node, lambda here: answers.reveal(here, number, message, _size(request)))


@router.put("/rounds/{run}/evaluation", summary="Report the final model's scores", **_TAKEN)
def evaluated(ctx: Ctx, node: Node, run: Id, message: Evaluation) -> None:
    _answer(ctx, run, node, lambda here: answers.evaluated(here, message))


@router.put("/rounds/{run}/acknowledgement", summary="Take note of a run's end", **_TAKEN)
def acknowledge(ctx: Ctx, node: Node, run: Id) -> None:
    _answer(ctx, run, node, answers.acknowledge)


@router.put("/rounds/{run}/failure", summary="Say why this site cannot go on", **_TAKEN)
def failed(ctx: Ctx, node: Node, run: Id, message: Failure) -> None:
    """Out of the review, the present round, or the evaluation; asked again in the next round."""
    _answer(ctx, run, node, lambda here: answers.failed(here, message))
