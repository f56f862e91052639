"""The one value that routes, tasks and background work receive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, cast

from fastapi import Depends, Request

from primia.chassis.at_rest import AtRest
from primia.chassis.clock import Clock
from primia.chassis.db import Database
from primia.chassis.files import Files
from primia.chassis.identity import Identity, PrincipalBook
from primia.chassis.jobs import Jobs, create_celery
from primia.chassis.peers import Peers
from primia.chassis.settings import ServiceSettings
from primia.chassis.telemetry import Metrics


@dataclass
class Context:
    """``extras`` holds what one process role makes for itself (the session host, for one)."""

    settings: Any  # the service's own subclass of ServiceSettings
    identity: Identity
    principals: PrincipalBook
    db: Database
    jobs: Jobs
    peers: Peers
    clock: Clock
    files: Files
    secrets: AtRest
    metrics: Metrics
    extras: dict[str, Any]

    def close(self) -> None:
        self.jobs.stop()
        self.peers.close()
        self.db.close()


def build(service: str, settings: ServiceSettings, clock: Clock | None = None) -> Context:
    identity = Identity.load(settings.identity_path, settings.name)
    return Context(
        settings=settings,
        identity=identity,
        principals=PrincipalBook(settings.principals_path),
        db=Database(settings.database),
        jobs=create_celery(service, settings),
        peers=Peers(identity),
        clock=clock or Clock(),
        files=Files(settings.state_dir, settings.min_free_bytes),
        secrets=AtRest(identity.storage_key()),
        metrics=Metrics(),
        extras={},
    )


async def context(request: Request) -> Context:  # a thread for it would cost more than it does
    return cast(Context, request.app.state.context)


Ctx = Annotated[Context, Depends(context)]
