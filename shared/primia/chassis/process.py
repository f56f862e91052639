"""The roles of a service: ``python -m services.NAME api|worker|beat|migrate``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import uvicorn
from celery import Celery
from celery.beat import EmbeddedService
from celery.signals import worker_ready, worker_shutting_down

from primia.chassis import jobs, migrate
from primia.chassis.app import create_app
from primia.chassis.context import Context, build
from primia.chassis.service import Service
from primia.chassis.telemetry import configure_logging, get_logger
from primia.errors import PrimiaError
from primia.fss import kernels

log = get_logger(__name__)
ROLES = ("api", "worker", "beat", "migrate")
_GRACE_SECONDS = 20


def main(service: Service, arguments: Sequence[str]) -> int:
    """Run one role; the exit status is 0, or 2 with one line that says what is wrong."""
    if len(arguments) != 1 or arguments[0] not in ROLES:
        print(f"usage: python -m services.{service.kind} {'|'.join(ROLES)}", file=sys.stderr)
        return 2
    try:
        settings = service.settings.from_environment()
        configure_logging(f"{service.kind}/{settings.name}", settings.log_level)
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        ctx = build(service.kind, settings)
        run(service, arguments[0], ctx)
    except PrimiaError as error:
        print(f"{service.kind}: {error}", file=sys.stderr)
        return 2
    return 0


def run(service: Service, role: str, ctx: Context) -> None:
    if role == "migrate":
        migrate.upgrade(ctx.db, service.migrations)
        log.info("the database is at the newest revision")
        return
    migrate.require_current(ctx.db, service.migrations)
    {"api": _api, "worker": _worker, "beat": _beat}[role](service, ctx)


def _api(service: Service, ctx: Context) -> None:
    uvicorn.run(
        create_app(service, ctx),
        host=ctx.settings.host,
        port=ctx.settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    ctx.close()


def _worker(service: Service, ctx: Context) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", str(ctx.settings.threads))
    log.info("comparisons", kernel=kernels.chosen(ctx.settings.kernel))
    jobs.register(ctx.jobs, lambda: ctx, service.tasks, service.sweeps)
    app = ctx.jobs.celery
    beat = _embedded_beat(app) if ctx.settings.embedded_beat else None
    # weak=False: Celery's signals would otherwise forget these local functions.
    worker_ready.connect(lambda **_: beat.start() if beat else None, weak=False)
    worker_shutting_down.connect(lambda **_: ctx.jobs.stop(), weak=False)
    service.worker_start(ctx)
    try:
        app.worker_main(
            [
                "worker",
                "--pool=threads",
                f"--concurrency={ctx.settings.concurrency}",
                f"--queues={ctx.jobs.queue}",
                "--without-gossip",
                "--without-mingle",
                "--without-heartbeat",
                f"--loglevel={ctx.settings.log_level}",
            ]
        )
    finally:
        if beat:
            beat.stop()
        service.worker_stop(ctx)
        ctx.close()


def _embedded_beat(app: Celery) -> Any:
    beat = EmbeddedService(app, thread=True)
    beat.daemon = True
    return beat


def _beat(service: Service, ctx: Context) -> None:
    jobs.register(ctx.jobs, lambda: ctx, service.tasks, service.sweeps)
    ctx.jobs.celery.Beat(loglevel=ctx.settings.log_level, redirect_stdouts=False).run()
