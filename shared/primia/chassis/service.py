"""What a service hands to the chassis: its parts, as values."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import APIRouter
from sqlalchemy import MetaData

from primia.chassis.context import Context
from primia.chassis.health import Check
from primia.chassis.jobs import Sweep, Task
from primia.chassis.settings import ServiceSettings

Background = Callable[[Context], Awaitable[None]]
Hook = Callable[[Context], None]


def _nothing(_ctx: Context) -> None:
    return None


@dataclass(frozen=True)
class Service:
    """``background`` coroutines run in the API process; the hooks in the worker."""

    kind: str
    title: str
    summary: str
    settings: type[ServiceSettings]
    metadata: MetaData
    migrations: Path
    routers: Sequence[APIRouter]
    tasks: Mapping[str, Task]
    sweeps: Mapping[str, tuple[float, Sweep]]
    background: Sequence[Background] = ()
    checks: Mapping[str, Check] = field(default_factory=dict)
    worker_start: Hook = _nothing
    worker_stop: Hook = _nothing
