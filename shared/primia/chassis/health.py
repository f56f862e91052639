"""Liveness, readiness (which says what is missing) and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import psutil
from fastapi import APIRouter, Query, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.responses import JSONResponse, PlainTextResponse, Response

from primia.chassis.context import Context, Ctx
from primia.chassis.problems import responses
from primia.errors import Forbidden, PrimiaError

_MAX_PROBE_BYTES = 4 << 20
Check = Callable[[Context], str | None]


class Live(BaseModel):
    status: Literal["live"] = "live"


class Ready(BaseModel):
    """``missing`` names each thing that keeps the service from working."""

    status: Literal["ready", "not ready"]
    missing: dict[str, str] = {}


def router(checks: Mapping[str, Check]) -> APIRouter:
    made = APIRouter(tags=["health"])

    @made.get("/health/live", summary="Is the process alive?")
    def live() -> Live:
        return Live()

    @made.get(
        "/health/ready",
        summary="Can the service work, and what is missing?",
        responses={503: {"model": Ready, "description": "Something is missing"}},
    )
    def ready(ctx: Ctx) -> Response:
        missing = what_is_missing(ctx, checks)
        body = Ready(status="not ready" if missing else "ready", missing=missing)
        return JSONResponse(body.model_dump(), 503 if missing else 200)

    return made


def metrics_router() -> APIRouter:
    made = APIRouter(tags=["health"])
    # The door lets the monitor's static token through to /metrics alone, without a principal.

    @made.get(
        "/metrics",
        summary="Prometheus metrics",
        response_class=PlainTextResponse,
        responses=responses(),
    )
    def metrics(ctx: Ctx, request: Request) -> Response:
        caller = getattr(request.state, "principal", None)
        if caller is not None and caller.role not in ("user", "monitor"):
            raise Forbidden("Metrics are for this service's own users and monitors.")
        memory = ctx.metrics.gauge("process_resident_bytes", "Resident memory of this process")
        memory.set(psutil.Process().memory_info().rss)
        return Response(generate_latest(ctx.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return made


def probe_router() -> APIRouter:
    made = APIRouter(tags=["health"])

    @made.get(
        "/probe",
        summary="Zeros: measure a link with them",
        response_class=Response,
        responses={
            200: {"description": "Zeros", "content": {"application/octet-stream": {}}},
            **responses(422),
        },
    )
    def probe(
        size: Annotated[int, Query(alias="bytes", ge=0, le=_MAX_PROBE_BYTES)] = 0,
    ) -> Response:
        return Response(bytes(size), media_type="application/octet-stream")

    return made


def what_is_missing(ctx: Context, checks: Mapping[str, Check]) -> dict[str, str]:
    missing: dict[str, str] = {}
    for name, check in {**_BASE, **checks}.items():
        try:
            reason = check(ctx)
        except PrimiaError as error:
            reason = error.detail
        except Exception as error:  # noqa: BLE001  # whatever fails is what is missing
            reason = f"not reachable ({type(error).__name__})"
        if reason:
            missing[name] = reason
    return missing


def _database(ctx: Context) -> str | None:
    ctx.db.ping()
    return None


def _broker(ctx: Context) -> str | None:
    ctx.jobs.ping()
    return None


def _disk(ctx: Context) -> str | None:
    return None if ctx.files.free_bytes() > 0 else "no free space beside the reserve"


_BASE: dict[str, Check] = {"database": _database, "broker": _broker, "disk": _disk}
