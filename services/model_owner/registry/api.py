"""Routes: models and versions, for the owner's own users; a data node gets no weights here."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Body, Depends, Path, Query, Request, Response
from fastapi.responses import FileResponse

from primia.chassis.auth import require
from primia.chassis.context import Context, Ctx
from primia.chassis.files import replace_durably
from primia.chassis.identity import Principal
from primia.chassis.large_files import LargeFile
from primia.chassis.problems import responses
from primia.learning.calibration import largest_file, unpack
from primia.learning.spec import ModelSpec
from primia.messages.common import Name
from primia.messages.registry import (
    ModelList,
    ModelReport,
    NewModel,
    VersionList,
    VersionReport,
)
from primia.prg import fresh_bytes
from services.model_owner.registry import receive, store, weights
from services.model_owner.registry.views import model_report, version_report

User = Annotated[Principal, Depends(require("user"))]
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]
BINARY = "application/octet-stream"
_BINARY_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {BINARY: {"schema": {"type": "string", "format": "binary"}}},
    }
}

router = APIRouter(prefix="/models", tags=["models"], dependencies=[Depends(require("user"))])

_EXAMPLES: dict[str, Any] = {
    "radiographs": {
        "summary": "ResNet-18 for two findings on grey radiographs",
        "value": {
            "name": "chest",
            "description": "Pneumonia on paediatric chest radiographs",
            "architecture": "resnet18",
            "classes": ["normal", "pneumonia"],
            "channels": 1,
            "image_size": 64,
            "seed": 7,
        },
    }
}


@router.post("", status_code=202, summary="Register a model", responses=responses(409, 413, 422))
def register(
    ctx: Ctx,
    user: User,
    model: Annotated[NewModel, Body(openapi_examples=_EXAMPLES)],
    response: Response,
) -> VersionReport:
    """Version 1 gets the weights that the seed gives; follow its state at the Location."""
    with ctx.db.session() as session:
        row = store.add_model(
            session, model.name, model.description, model.spec(), user.name, ctx.clock.now()
        )
        ctx.jobs.enqueue_after(session, "registry.prepare", row.id)
    response.headers["Location"] = _location(row.model, row.version)
    return version_report(row)


def _location(model: str, version: int) -> str:
    return f"/models/{model}/versions/{version}"


@router.get("", summary="List the models", responses=responses())
def listing(ctx: Ctx) -> ModelList:
    with ctx.db.reading() as session:
        rows = [(row, store.newest(session, row.name)) for row in store.models(session)]
    return ModelList(models=tuple(model_report(row, newest) for row, newest in rows))


@router.get("/{name}", summary="A model and its newest version", responses=responses(404, 422))
def show(ctx: Ctx, name: Name) -> ModelReport:
    with ctx.db.reading() as session:
        return model_report(store.find_model(session, name), store.newest(session, name))


@router.get("/{name}/versions", summary="List a model's versions", responses=responses(404, 422))
def list_versions(ctx: Ctx, name: Name) -> VersionList:
    with ctx.db.reading() as session:
        rows = store.versions(session, name)
    return VersionList(versions=tuple(version_report(row) for row in rows))


@router.get("/{name}/versions/{version}", summary="A version", responses=responses(404, 422))
def show_version(ctx: Ctx, name: Name, version: Number) -> VersionReport:
    with ctx.db.reading() as session:
        return version_report(store.find_version(session, name, version))


@router.get(
    "/{name}/versions/{version}/weights",
    summary="Download a version's weights (safetensors)",
    response_class=FileResponse,
    responses={
        **responses(404, 409, 422),
        200: {"content": {BINARY: {}}, "description": "A safetensors file"},
    },
)
def download(ctx: Ctx, name: Name, version: Number) -> FileResponse:
    with ctx.db.reading() as session:
        row = store.ready_version(session, name, version)
    return LargeFile(
        weights.weights_path(ctx.files, row.id),
        media_type=BINARY,
        filename=f"{name}-{version}.safetensors",
    )


@router.post(
    "/{name}/versions",
    status_code=202,
    summary="Upload a new version",
    responses=responses(400, 404, 409, 413, 422, 507),
    openapi_extra=_BINARY_BODY,
)
async def upload(
    ctx: Ctx,
    user: User,
    request: Request,
    response: Response,
    name: Name,
    parent: Annotated[
        int | None, Query(ge=1, le=2**31 - 1, description="the version that it was made from")
    ] = None,
    image_size: Annotated[
        int | None, Query(ge=16, le=512, description="default: the model's")
    ] = None,
) -> VersionReport:
    """The body is a safetensors file with the model's tensors, float32, each under its own name.

    It is checked in the background: follow its state at the Location.
    """
    limit = await run_sync(_upload_limit, ctx, name, parent, image_size)
    target = weights.upload_path(ctx.files, f"{name}-{fresh_bytes(8).hex()}")
    try:
        await receive.to_file(request, ctx.files, target, limit)
        report = await run_sync(_add_upload, ctx, name, parent, image_size, user.name, target)
    finally:
        target.unlink(missing_ok=True)
    response.headers["Location"] = _location(report.model, report.version)
    return report


@router.put(
    "/{name}/versions/{version}/calibration",
    status_code=204,
    summary="Give images for measuring a version's values",
    responses=responses(404, 409, 413, 422, 507),
    openapi_extra=_BINARY_BODY,
)
async def calibrate(ctx: Ctx, request: Request, name: Name, version: Number) -> None:
    """The body is a safetensors file with the tensor `pixels`, uint8 (1 to 64, channels, size,
    size). Used when the version is compiled for encrypted inference: withdraw it and serve it
    again if it is served already. The images stay here."""
    row, shape = await run_sync(_calibrated, ctx, name, version)
    target = weights.upload_path(ctx.files, f"calibration-{fresh_bytes(8).hex()}")
    try:
        await receive.to_file(request, ctx.files, target, largest_file(shape))
        await run_sync(_check_calibration, target, shape)
        await run_sync(replace_durably, target, weights.calibration_path(ctx.files, row.id))
    finally:
        target.unlink(missing_ok=True)


def _calibrated(
    ctx: Context, name: str, version: int
) -> tuple[store.ModelVersion, tuple[int, int, int]]:
    with ctx.db.reading() as session:
        spec = store.spec_of(store.find_model(session, name))
        row = store.ready_version(session, name, version)
    return row, (spec.channels, row.image_size, row.image_size)


def _check_calibration(path: FilePath, shape: tuple[int, int, int]) -> None:
    unpack(path.read_bytes(), shape)


def _upload_limit(ctx: Context, name: str, parent: int | None, image_size: int | None) -> int:
    """Bytes that a weights file of this model can have, known from its first version."""
    with ctx.db.reading() as session:
        spec = store.spec_of(store.find_model(session, name))
        if parent is not None:
            store.find_version(session, name, parent)
        if image_size is not None:
            check_image_size(spec, image_size)
        return store.ready_version(session, name, 1).size.weights_limit


def check_image_size(spec: ModelSpec, image_size: int) -> None:
    """Raises InvalidInput where the architecture does not take such images."""
    if image_size != spec.image_size:
        ModelSpec.parse({**spec.model_dump(), "image_size": image_size})


def _add_upload(
    ctx: Context,
    name: str,
    parent: int | None,
    image_size: int | None,
    user: str,
    received: Any,
) -> VersionReport:
    with ctx.db.session() as session:
        spec = store.spec_of(store.find_model(session, name))
        row = store.add_version(
            session,
            name,
            "uploaded",
            user,
            ctx.clock.now(),
            image_size=image_size or spec.image_size,
            parent=parent,
        )
        replace_durably(received, weights.upload_path(ctx.files, row.id))
        ctx.jobs.enqueue_after(session, "registry.prepare", row.id)
    return version_report(row)
