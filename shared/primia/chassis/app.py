"""The FastAPI application of a service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI

from primia.chassis import auth, health, pages, problems
from primia.chassis.context import Context
from primia.chassis.limits import BodyLimit
from primia.chassis.observe import Observe
from primia.chassis.service import Background, Service
from primia.chassis.telemetry import get_logger

log = get_logger(__name__)
_RESTART_SECONDS = 1.0


def create_app(service: Service, ctx: Context) -> FastAPI:
    """Routes behind the door, body limits, problem details, health, metrics, offline pages."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        running = [asyncio.create_task(_kept_running(work, ctx)) for work in service.background]
        yield
        ctx.jobs.stop()
        for work in running:
            work.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    app = FastAPI(
        title=service.title,
        summary=service.summary,
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.context = ctx
    app.include_router(health.router(service.checks))
    app.include_router(health.metrics_router())
    app.include_router(health.probe_router())
    for router in service.routers:
        app.include_router(router)
    pages.install(app)
    problems.install(app)
    settings = ctx.settings
    app.add_middleware(
        BodyLimit,
        max_json_bytes=settings.max_json_bytes,
        max_body_bytes=settings.max_body_bytes,
    )
    secret = settings.metrics_token
    app.add_middleware(
        auth.Door,
        audience=ctx.identity.name,
        book=ctx.principals,
        metrics_token=secret.get_secret_value() if secret else None,
    )
    app.add_middleware(Observe, metrics=ctx.metrics)
    return app


async def _kept_running(work: Background, ctx: Context) -> None:
    """Background work that breaks is started again; only the service's end ends it."""
    while not ctx.jobs.stopping():
        try:
            await work(ctx)
        except Exception as error:  # logged; the service goes on
            log.error("background work broke", error=type(error).__name__, exc_info=error)
        await asyncio.sleep(_RESTART_SECONDS)
