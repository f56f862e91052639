"""Celery, held short: tasks take an id, rows hold the truth, a lost message costs a sweep's delay.

Acknowledged late, one at a time, no results kept; a task may run twice and must not show it.
Tasks run in threads of one worker process, so that a long training does not hold up an inference.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy.orm import Session

from primia.chassis import memory
from primia.chassis.db import after_commit
from primia.chassis.telemetry import current_request_id, get_logger, request_scope
from primia.errors import PrimiaError

if TYPE_CHECKING:
    from primia.chassis.context import Context
    from primia.chassis.settings import ServiceSettings

log = get_logger(__name__)

Task = Callable[["Context", str], None]
Sweep = Callable[["Context"], None]
# While the broker is away an enqueue gives up soon: the row stays, and the sweep sends it again.
_PUBLISH_RETRY = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.2}


class Jobs:
    """Sends work to the service's own queue."""

    def __init__(self, app: Celery, queue: str) -> None:
        self.celery = app
        self.queue = queue
        self._stopping = threading.Event()

    def enqueue(self, task: str, row_id: str, countdown: float = 0) -> None:
        """A hint that this row wants work; losing it is harmless."""
        try:
            self.celery.send_task(
                task,
                args=[row_id, current_request_id()],
                queue=self.queue,
                countdown=countdown or None,
                retry=True,
                retry_policy=_PUBLISH_RETRY,
            )
        except (OperationalError, OSError) as error:
            log.warning("the broker is away; a sweep will send this again", task=task, id=row_id)
            log.debug("broker error", error=type(error).__name__)

    def enqueue_after(self, session: Session, task: str, row_id: str, countdown: float = 0) -> None:
        """Enqueue once this transaction has been committed."""
        after_commit(session, lambda: self.enqueue(task, row_id, countdown))

    def ping(self) -> None:
        """Raises if the broker cannot be reached."""
        with self.celery.connection_for_write(connect_timeout=2) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=2)

    def stop(self) -> None:
        self._stopping.set()

    def stopping(self) -> bool:
        """True once this process has been asked to end: long tasks save their state and leave."""
        return self._stopping.is_set()


def create_celery(service: str, settings: ServiceSettings) -> Jobs:
    queue = f"primia.{service}.{settings.name}"
    app = Celery(service, broker=settings.broker_url.get_secret_value(), set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_default_queue=queue,
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": settings.visibility_timeout,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 10,
            "socket_connect_timeout": 2,
            "socket_timeout": 30,
            "socket_keepalive": True,
        },
        beat_schedule_filename=str(settings.state_dir / "beat-schedule"),
    )
    return Jobs(app, queue)


def register(
    jobs: Jobs,
    context: Callable[[], Context],
    tasks: Mapping[str, Task],
    sweeps: Mapping[str, tuple[float, Sweep]],
) -> None:
    """Make the service's functions Celery tasks, and its sweeps the beat's schedule."""
    for name, task in tasks.items():
        jobs.celery.task(_runner(name, task, context), name=name)
    schedule: dict[str, Any] = {}
    for name, (seconds, sweep) in sweeps.items():
        jobs.celery.task(_sweeper(name, sweep, context), name=name)
        # An unstarted sweep is worthless once the next is due.
        options = {"queue": jobs.queue, "expires": seconds}
        schedule[name] = {"task": name, "schedule": seconds, "options": options}
    jobs.celery.conf.beat_schedule = schedule


def _runner(name: str, task: Task, context: Callable[[], Context]) -> Callable[..., None]:
    def run(row_id: str, request_id: str | None = None) -> None:
        ctx = context()
        with request_scope(request_id):
            try:
                _outcome(ctx, name, row_id, lambda: task(ctx, row_id))
            finally:
                memory.give_back_at_times()

    return run


def _sweeper(name: str, sweep: Sweep, context: Callable[[], Context]) -> Callable[[], None]:
    def run() -> None:
        ctx = context()
        with request_scope(None):
            _outcome(ctx, name, None, lambda: sweep(ctx))

    return run


def _outcome(ctx: Context, name: str, row_id: str | None, work: Callable[[], None]) -> None:
    started = time.perf_counter()
    try:
        work()
    except PrimiaError as error:
        ctx.metrics.tasks.labels(name, "refused").inc()
        log.warning("task failed", task=name, id=row_id, code=error.code, detail=error.detail)
    except Exception as error:
        ctx.metrics.tasks.labels(name, "error").inc()
        log.error("task broke", task=name, id=row_id, error=type(error).__name__, exc_info=error)
        raise
    else:
        ctx.metrics.tasks.labels(name, "done").inc()
        if row_id is not None:
            milliseconds = round((time.perf_counter() - started) * 1000, 1)
            log.info("task", task=name, id=row_id, milliseconds=milliseconds)
