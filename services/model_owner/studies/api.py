"""Routes: search for hyperparameters."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Query, Response
from sqlalchemy.orm import Session

from primia.chassis.auth import require
from primia.chassis.context import Ctx
from primia.chassis.identity import Principal
from primia.chassis.problems import responses
from primia.messages.common import Id
from primia.messages.studies import (
    MoreTrials,
    StudyList,
    StudyReport,
    StudyRequest,
    StudySummary,
)
from primia.prg import fresh_bytes
from services.model_owner.registry import store as registry
from services.model_owner.rounds.start import fit
from services.model_owner.studies import domain, ending, store
from services.model_owner.studies.store import Study

User = Annotated[Principal, Depends(require("user"))]

router = APIRouter(prefix="/studies", tags=["search"], dependencies=[Depends(require("user"))])

_EXAMPLES: dict[str, Any] = {
    "rates": {
        "summary": "Twenty short runs over the learning rate and the optimiser",
        "value": {
            "run": {
                "model": "chest",
                "nodes": ["hospital-a", "hospital-b", "hospital-c"],
                "rounds": 3,
                "training": {"image_size": 64},
            },
            "parameters": {
                "training.learning_rate": {"kind": "float", "low": 1e-5, "high": 1e-2, "log": True},
                "training.optimiser": {"kind": "choice", "values": ["sgd", "adam"]},
            },
            "trials": 20,
        },
    }
}


@router.post("", status_code=202, summary="Start a search", responses=responses(404, 409, 413, 422))
def create(
    ctx: Ctx,
    user: User,
    request: Annotated[StudyRequest, Body(openapi_examples=_EXAMPLES)],
    response: Response,
) -> StudySummary:
    """Every trial is a training run that the sites review and whose privacy cost they are charged;
    its model is not kept. Any field of the run but its nodes and ``keep`` can be a parameter."""
    runs = list(domain.check(request))
    with ctx.db.session() as session:
        versions = _versions(session, request)
        for each in runs:
            fit(ctx, session, each)
        run = request.run.model_copy(update={"version": versions.get(request.run.model)})
        if "model" not in request.parameters:
            request = request.model_copy(update={"run": run})
        row = Study(
            id=fresh_bytes(16).hex(),
            state="running",
            request=request.model_dump(mode="json"),
            versions=versions,
            trials=request.trials,
            created=ctx.clock.now(),
            created_by=user.name,
        )
        session.add(row)
        ctx.jobs.enqueue_after(session, "studies.advance", row.id)
        session.flush()
        summary = store.summary(row, [])
    response.headers["Location"] = f"/studies/{summary.id}"
    return summary


def _versions(session: Session, request: StudyRequest) -> dict[str, int]:
    """All trials of a model start from the same version, whatever is trained meanwhile. Raises
    NotFound, Conflict (not ready)."""
    drawn = request.parameters.get("version")
    for version in domain.bounds(drawn) if drawn else ():
        if version is not None:
            registry.ready_version(session, request.run.model, int(str(version)))
    return {
        name: registry.ready_version(session, name, request.run.version).version
        for name in domain.models(request)
    }


@router.get("", summary="List searches, newest first", responses=responses(422))
def listing(ctx: Ctx, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> StudyList:
    with ctx.db.reading() as session:
        found = store.listing(session, limit)
        return StudyList(
            studies=tuple(store.summary(row, store.trials(session, row.id)) for row in found)
        )


@router.get("/{study}", summary="A search: its trials and the best", responses=responses(404, 422))
def show(ctx: Ctx, study: Id) -> StudyReport:
    from services.model_owner.studies import search  # optuna: only where it is needed

    with ctx.db.reading() as session:
        row = store.find(session, study)
        rows = store.trials(session, study)
    importance = search.importance(store.request_of(row), store.past(rows))
    return store.report(row, rows, importance)


@router.get(
    "/{study}/plots/{kind}.png",
    summary="Values over trials, or the importance of the parameters",
    response_class=Response,
    responses={**responses(404, 422), 200: {"content": {"image/png": {}}}},
)
def plot(ctx: Ctx, study: Id, kind: Literal["history", "importance"]) -> Response:
    from primia.evaluation import plots  # only where they are needed

    found = show(ctx, study)
    if kind == "importance":
        png = plots.bars(found.importance, "importance")
    else:
        values = [(float(t.number), t.value) for t in found.reports if t.value is not None]
        png = plots.curves({"complete trials": values}, "trial", found.request.objective)
    return Response(png, media_type="image/png")


@router.post(
    "/{study}/trials", status_code=202, summary="More trials", responses=responses(404, 409, 422)
)
def extend(ctx: Ctx, study: Id, more: MoreTrials) -> StudySummary:
    """A study that has finished or failed goes on; all its trials count, but those that failed
    before do not end it again."""
    with ctx.db.session() as session:
        row = store.find(session, study, lock=True)
        if row.state != "running":
            row.state = domain.move(store.state_of(row), "running")
            row.reason, row.ended = "", None
            row.continued = len(store.trials(session, study))
        row.trials += more.trials
        ctx.jobs.enqueue_after(session, "studies.advance", row.id)
        return store.summary(row, store.trials(session, study))


@router.delete(
    "/{study}", status_code=202, summary="Cancel a search", responses=responses(404, 409, 422)
)
def cancel(ctx: Ctx, user: User, study: Id) -> StudySummary:
    """The runs of its trials are cancelled with it; what is complete stays."""
    with ctx.db.session() as session:
        row = store.find(session, study, lock=True)
        if row.state != "cancelled":
            ending.end(ctx, session, row, "cancelled", f"Cancelled by {user.name}.")
        return store.summary(row, store.trials(session, study))
