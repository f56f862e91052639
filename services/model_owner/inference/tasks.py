"""Celery entry points of party 0's side."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from primia.chassis.context import Context
from primia.chassis.jobs import Sweep, Task
from services.model_owner.inference import kept, serving, sessions, store

# No download of a half takes so long.
_STALE_SECONDS = 6 * 3600


def resend(ctx: Context) -> None:
    with ctx.db.reading() as session:
        waiting = store.to_compile(session)
    for plan_id in waiting:
        ctx.jobs.enqueue("inference.compile", plan_id)


def tidy(ctx: Context) -> None:
    """Remove what a worker was killed over: of an open session the files are gone."""
    ctx.files.remove_stale(sessions.FOLDER, _STALE_SECONDS, keep=kept.files(ctx))


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "inference.compile": serving.compile_plan,
        "inference.withdraw": serving.withdraw,
        kept.KEEP: kept.keep,
        "inference.open": sessions.open_session,
        "inference.burn": sessions.burn,
    }
)
SWEEPS: Mapping[str, tuple[float, Sweep]] = MappingProxyType(
    {
        "inference.resend": (10.0, resend),
        "inference.watch": (10.0, sessions.watch),
        "inference.kept": (10.0, kept.watch),
        "inference.tidy": (600.0, tidy),
    }
)
