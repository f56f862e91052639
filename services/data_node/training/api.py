"""Routes: the runs this site was asked to join, decisions on them, and how they go."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from sse_starlette import EventSourceResponse

from primia.chassis.auth import require
from primia.chassis.context import Ctx
from primia.chassis.events import Event, sse
from primia.chassis.identity import Principal
from primia.chassis.problems import responses
from primia.messages.common import Id
from services.data_node.datasets import store as datasets
from services.data_node.training import approval, store
from services.data_node.training.domain import ENDED, RunState
from services.data_node.training.schemas import (
    Approval,
    Refusal,
    RunList,
    RunSummaryView,
    RunView,
    Withdrawal,
)
from services.data_node.training.tables import RunEvent

router = APIRouter(prefix="/runs", tags=["training runs"])
User = Annotated[Principal, Depends(require("user"))]


@router.get("", summary="List the runs, newest first", responses=responses(422))
def listing(
    ctx: Ctx,
    _user: User,
    state: Annotated[RunState | None, Query(description="pending: those to decide on")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> RunList:
    with ctx.db.reading() as session:
        rows = store.runs(session, state, limit)
    return RunList(runs=[RunSummaryView.of(row) for row in rows])


@router.get("/{run_id}", summary="A run as this site sees it", responses=responses(404, 422))
def show(ctx: Ctx, _user: User, run_id: Id) -> RunView:
    with ctx.db.reading() as session:
        row = store.find_run(session, run_id)
        against = approval.objections(ctx, session, row) if row.state == "pending" else []
        return RunView.whole(row, store.rounds(session, run_id), against)


@router.post(
    "/{run_id}/approve", summary="Take part, with this data set", responses=responses(404, 409, 422)
)
def approve(ctx: Ctx, user: User, run_id: Id, request: Approval) -> RunView:
    """Refused while something stands against it: another run is active here, classes differ, or a
    participant's identity key is not the one enrolled at this site."""
    with ctx.db.session() as session:
        row = store.find_run(session, run_id, lock=True)
        dataset = datasets.find_ready(session, request.dataset)
        approval.approve(ctx, session, row, dataset, user.name)
        return RunView.whole(row, [], [])


@router.post("/{run_id}/refuse", summary="Do not take part", responses=responses(404, 409, 422))
def refuse(ctx: Ctx, user: User, run_id: Id, request: Refusal) -> RunView:
    with ctx.db.session() as session:
        row = store.find_run(session, run_id, lock=True)
        approval.refuse(ctx, session, row, request.reason, user.name)
        return RunView.whole(row, [], [])


@router.post("/{run_id}/withdraw", summary="Leave a run", responses=responses(404, 409, 422))
def withdraw(ctx: Ctx, user: User, run_id: Id, request: Withdrawal) -> RunView:
    """Training stops at the next batch; this site's keys and updates of the run are deleted. What
    earlier rounds have contributed cannot be taken back."""
    with ctx.db.session() as session:
        row = store.find_run(session, run_id, lock=True)
        approval.withdraw(ctx, session, row, request.reason, user.name)
        return RunView.whole(row, store.rounds(session, run_id), [])


@router.get(
    "/{run_id}/events",
    summary="Follow a run (server-sent events)",
    response_class=EventSourceResponse,
    responses={
        **responses(404, 422),
        200: {
            "description": "Kinds: state, trained, round, evaluation, error. Ends with the run.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
    },
)
def events(ctx: Ctx, _user: User, run_id: Id, request: Request) -> Response:
    """Give Last-Event-ID to go on where a connection broke off."""

    def after(last: int) -> Sequence[Event]:
        with ctx.db.reading() as session:
            return [_event(row) for row in store.events_after(session, run_id, last)]

    with ctx.db.reading() as session:
        over = store.find_run(session, run_id).state in ENDED
    return sse(request, after, over)


def _event(row: RunEvent) -> Event:
    data = {**row.data, "at": row.created.isoformat()}
    last = row.kind == "state" and row.data.get("state") in ENDED
    return Event(row.id, row.kind, json.dumps(data), last)
