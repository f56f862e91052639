"""What a worker process starts and stops: the session host, its listener, its keeper."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

from primia.chassis.context import Context
from primia.chassis.telemetry import get_logger
from primia.mpc import linear_maps
from services.model_owner.inference import sessions, store
from services.model_owner.inference.host import SessionHost
from services.model_owner.inference.listener import Listener, create_listener
from services.model_owner.inference.models import PreparedModels
from services.model_owner.inference.sessions import ALIVE_SECONDS, WORKER, InferenceWorker

log = get_logger(__name__)
_KEEP_SECONDS = 5.0


def start(ctx: Context) -> None:
    settings = ctx.settings

    def ended(session_id: str, finished: bool, reason: str) -> None:
        sessions.ended(ctx, session_id, finished, reason)

    aside = ThreadPoolExecutor(1, thread_name_prefix="sessions-aside")
    host = SessionHost(
        settings.max_sessions,
        settings.session_idle_seconds,
        ended,
        aside=lambda work: aside.submit(work).add_done_callback(_told),
    )
    listener = Listener(
        create_listener(host, settings.max_body_bytes),
        settings.session_host,
        settings.session_port,
        settings.session_url_host,
    )
    listener.start()
    models = PreparedModels(ctx.files, linear_maps.linear_map(settings.kernel))
    ctx.extras[WORKER] = InferenceWorker(host, listener, models, aside)
    threading.Thread(target=_keep, args=(ctx, host), daemon=True).start()


def stop(ctx: Context) -> None:
    worker: InferenceWorker | None = ctx.extras.pop(WORKER, None)
    if worker is not None:
        worker.host.close()
        worker.listener.stop()
        worker.aside.shutdown()


def _told(done: Future[None]) -> None:
    if (error := done.exception()) is not None:  # its row ends as lost; the answer is given
        log.warning("the end of a session was not written", error=type(error).__name__)


def _keep(ctx: Context, host: SessionHost) -> None:
    waited = threading.Event()
    while not ctx.jobs.stopping():
        try:
            keep_once(ctx, host)
        except Exception as error:  # noqa: BLE001  # tried again; rows not renewed end as lost
            log.warning("sessions could not be renewed", error=type(error).__name__)
        waited.wait(_KEEP_SECONDS)


def keep_once(ctx: Context, host: SessionHost) -> None:
    """Expire idle sessions and renew the rows of the others."""
    open_ids = host.sweep()
    if open_ids:
        with ctx.db.session() as session:
            store.renew(session, open_ids, ctx.clock.after(ALIVE_SECONDS))
