"""Routes for the owner's users: which versions are served for encrypted inference."""

from __future__ import annotations

from itertools import product
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Response

from primia.chassis.auth import require
from primia.chassis.context import Ctx
from primia.chassis.identity import Principal
from primia.chassis.problems import responses
from primia.errors import NotFound
from primia.messages.common import Name
from primia.messages.inference import ServeRequest, Serving, Servings
from services.model_owner.inference import serving, store
from services.model_owner.inference.domain import ServingEvent, ServingState
from services.model_owner.registry import store as registry

router = APIRouter(prefix="/models/{name}/versions/{version}/serve", tags=["encrypted inference"])
User = Annotated[Principal, Depends(require("user"))]
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]

_EXAMPLES = {
    "both": {
        "summary": "Scores and labels, two deals of one image ahead",
        "value": {"results": ["scores", "label"], "stock": 2, "batch": 1},
    },
    "calibrated": {
        "summary": "Labels with narrow windows: less than half the material (needs calibration)",
        "value": {"results": ["label"], "accuracies": ["exact", "calibrated"], "stock": 4},
    },
}


@router.post(
    "",
    status_code=202,
    summary="Compile a version and offer it to the data nodes",
    responses=responses(404, 409, 422),
)
def serve(
    name: Name,
    version: Number,
    wanted: Annotated[ServeRequest, Body(openapi_examples=_EXAMPLES)],
    _user: User,
    ctx: Ctx,
    response: Response,
) -> Servings:
    """One row for each kind of result and accuracy; of a version that is served, this renews the
    stock. A model that cannot be compiled is refused in its row, naming the layer."""
    with ctx.db.session() as session:
        row = registry.ready_version(session, name, version)
        for kind in dict.fromkeys(product(wanted.results, wanted.accuracies)):
            serving.ask(ctx, session, row, kind, wanted.stock, wanted.batch)
        found = _servings(store.servings(session, name, version))
    response.headers["Location"] = f"/models/{name}/versions/{version}/serve"
    return found


@router.get("", summary="How a version is served", responses=responses(404, 422))
def show(name: Name, version: Number, _user: User, ctx: Ctx) -> Servings:
    with ctx.db.reading() as session:
        registry.find_version(session, name, version)
        return _servings(store.servings(session, name, version))


@router.delete(
    "",
    status_code=204,
    summary="Serve a version no more: its stock of material is thrown away",
    responses=responses(404, 422),
)
def withdraw(name: Name, version: Number, _user: User, ctx: Ctx) -> Response:
    with ctx.db.session() as session:
        rows = store.servings(session, name, version, lock=True)
        if not rows:
            raise NotFound(f"Version {version} of {name} is not served.")
        for row in rows:
            if row.state != ServingState.WITHDRAWN.value:
                row.advance(ServingEvent.WITHDRAW)
                ctx.jobs.enqueue_after(session, "inference.withdraw", row.id)
    return Response(status_code=204)


def _servings(rows: store.Rows) -> Servings:
    return Servings(
        servings=tuple(
            Serving.model_validate(
                {field: getattr(row, field) for field in Serving.model_fields if field != "plan"}
                | {"plan": row.id}
            )
            for row in rows
        )
    )
