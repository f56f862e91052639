"""Routes: register, look at and remove data sets. For this institution's users only."""

from __future__ import annotations

import shutil
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from primia.chassis.auth import require
from primia.chassis.context import Ctx
from primia.chassis.db import after_commit
from primia.chassis.problems import responses
from primia.learning.patients import compile_pattern
from primia.messages.common import Name
from primia.prg import fresh_bytes
from services.data_node.datasets import domain, store
from services.data_node.datasets.schemas import (
    DatasetList,
    DatasetRequest,
    DatasetView,
    ProblemPage,
    ProblemView,
)

router = APIRouter(prefix="/datasets", tags=["data sets"], dependencies=[Depends(require("user"))])


@router.post("", status_code=202, summary="Register a data set", responses=responses(409, 422))
def register(ctx: Ctx, request: DatasetRequest, response: Response) -> DatasetView:
    """It is validated in the background: follow its state at the Location."""
    if request.patient_pattern is not None:
        compile_pattern(request.patient_pattern)
    shares = request.split
    place = domain.allowed_place(request.path or request.csv or "", ctx.settings.data_roots)
    with ctx.db.session() as session:
        row = store.register(
            session,
            dataset_id=fresh_bytes(16).hex(),
            name=request.name,
            kind=request.kind,
            place=str(place),
            patient_pattern=request.patient_pattern,
            bad_files=request.bad_files,
            now=ctx.clock.now(),
            split=None if shares is None else domain.Split(shares.validation, shares.test),
        )
        ctx.jobs.enqueue_after(session, "datasets.validate", row.id)
        response.headers["Location"] = f"/datasets/{row.name}"
        return DatasetView.of(row)


@router.get("", summary="List the data sets", responses=responses())
def listing(ctx: Ctx) -> DatasetList:
    with ctx.db.reading() as session:
        return DatasetList(datasets=[DatasetView.of(row) for row in store.listing(session)])


@router.get("/{name}", summary="State and counts of a data set", responses=responses(404))
def show(ctx: Ctx, name: Name) -> DatasetView:
    with ctx.db.reading() as session:
        return DatasetView.of(store.find(session, name))


@router.get(
    "/{name}/problems", summary="What is wrong, file by file", responses=responses(404, 422)
)
def problems(
    ctx: Ctx,
    name: Name,
    after: Annotated[
        int, Query(ge=0, le=2**31 - 1, description="the page behind this problem's id")
    ] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> ProblemPage:
    with ctx.db.reading() as session:
        found = store.problem_page(session, store.find(session, name), after, limit + 1)
    page = [ProblemView.of(row) for row in found[:limit]]
    return ProblemPage(problems=page, next=page[-1].id if len(found) > limit else None)


@router.delete(
    "/{name}", status_code=204, summary="Forget a data set", responses=responses(404, 409)
)
def delete(ctx: Ctx, name: Name) -> None:
    """The files themselves are not touched. Refused while a run trains on it."""
    with ctx.db.session() as session:
        row = store.find(session, name)
        store.remove(session, row)
        folder = ctx.files.root / "pixels" / row.id
        after_commit(session, lambda: shutil.rmtree(folder, ignore_errors=True))
