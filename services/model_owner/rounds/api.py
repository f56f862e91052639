"""Routes for the owner's users: start, watch and cancel training runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from fastapi.responses import HTMLResponse

from primia.chassis.auth import require
from primia.chassis.context import Ctx
from primia.chassis.events import Event, sse
from primia.chassis.identity import Principal
from primia.chassis.problems import responses
from primia.messages.common import Id
from primia.messages.rounds import RunRequest
from primia.messages.runs import ENDED, RunDocument, RunPage, RunReport, RunSummary
from services.model_owner.rounds import progress, store, views
from services.model_owner.rounds.document import document
from services.model_owner.rounds.start import start

User = Annotated[Principal, Depends(require("user"))]
_EVENTS_AT_ONCE = 200

router = APIRouter(prefix="/rounds", tags=["training"], dependencies=[Depends(require("user"))])

_EXAMPLES: dict[str, Any] = {
    "secure": {
        "summary": "Ten rounds at three hospitals; one of them may disappear",
        "value": {
            "model": "chest",
            "nodes": ["hospital-a", "hospital-b", "hospital-c"],
            "rounds": 10,
            "training": {"image_size": 64, "epochs": 1, "optimiser": "adam"},
            "aggregation": {"secure": True, "threshold": 2},
        },
    },
    "plain": {
        "summary": "For comparison: the owner sees each update",
        "value": {
            "model": "chest",
            "nodes": ["hospital-a", "hospital-b"],
            "rounds": 10,
            "aggregation": {"secure": False, "minimum_nodes": 2},
        },
    },
}


@router.post(
    "", status_code=202, summary="Start a training run", responses=responses(404, 409, 413, 422)
)
def create(
    ctx: Ctx,
    user: User,
    request: Annotated[RunRequest, Body(openapi_examples=_EXAMPLES)],
    response: Response,
) -> RunSummary:
    """The nodes review it first; follow it at the Location. A node takes part in one run at once:
    409 names the run that it is in."""
    with ctx.db.session() as session:
        run = start(ctx, session, request, user.name)
    response.headers["Location"] = f"/rounds/{run.id}"
    return views.summary(run)


@router.get("", summary="List training runs, newest first", responses=responses(404, 422))
def listing(
    ctx: Ctx,
    before: Annotated[Id | None, Query(description="the runs behind this one")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> RunPage:
    with ctx.db.reading() as session:
        rows = store.page(session, before, limit + 1)
    found = tuple(views.summary(row) for row in rows[:limit])
    return RunPage(runs=found, next=found[-1].id if len(rows) > limit else None)


@router.get("/{run}", summary="A run: state, rounds and sites", responses=responses(404, 422))
def show(ctx: Ctx, run: Id) -> RunReport:
    with ctx.db.reading() as session:
        return views.report(session, store.find(session, run))


@router.get(
    "/{run}/report",
    summary="The report of a run: configuration, course, figures of its models",
    responses=responses(404, 422),
)
def report(ctx: Ctx, run: Id) -> RunDocument:
    """Figures per site and of all sites' images together, with 95 % intervals. What the request in
    it says repeats the run: POST it to /rounds."""
    with ctx.db.reading() as session:
        return document(session, store.find(session, run))


@router.get(
    "/{run}/report.html",
    summary="The same as a page with plots, complete in itself",
    response_class=HTMLResponse,
    responses=responses(404, 422),
)
def report_page(ctx: Ctx, run: Id) -> HTMLResponse:
    from services.model_owner.rounds.page import page  # plots: only when a page is asked for

    with ctx.db.reading() as session:
        found = document(session, store.find(session, run))
    return HTMLResponse(page(found))


@router.get(
    "/{run}/events",
    summary="Follow a run (server-sent events)",
    responses={
        **responses(404, 422),
        200: {
            "content": {"text/event-stream": {}},
            "description": "Events from the beginning or after Last-Event-ID; ends with the run",
        },
        204: {"description": "The run has ended and nothing comes after Last-Event-ID"},
    },
)
def events(ctx: Ctx, run: Id, request: Request) -> Response:
    """``event:`` is the kind, ``data:`` a RunEvent."""

    def after(last: int) -> Sequence[Event]:
        with ctx.db.reading() as session:
            rows = store.events(session, run, last, _EVENTS_AT_ONCE)
        return [
            Event(row.id, row.kind, views.event(row).model_dump_json(), last=row.kind in ENDED)
            for row in rows
        ]

    with ctx.db.reading() as session:
        over = progress.ended(store.find(session, run))
    return sse(request, after, over)


@router.delete(
    "/{run}", status_code=202, summary="Cancel a run", responses=responses(404, 409, 422)
)
def cancel(ctx: Ctx, user: User, run: Id) -> RunSummary:
    """Its nodes are told to stop when they ask for work. A run that is cancelled stays so; one that
    has ended otherwise cannot be cancelled."""
    with ctx.db.session() as session:
        row = store.find(session, run, lock=True)
        if row.state != "cancelled":
            progress.end(ctx, session, row, "cancelled", f"Cancelled by {user.name}.")
        return views.summary(row)
