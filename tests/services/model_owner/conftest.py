"""A model owner as a real process has it: migrated database, keys, enrolled principals, the app."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from primia.chassis import migrate
from primia.chassis.app import create_app
from primia.chassis.clock import Clock
from primia.chassis.context import Context
from primia.chassis.db import Database
from services.model_owner.main import create_service
from services.model_owner.settings import ModelOwnerSettings
from tests.services.model_owner.federation import Federation
from tests.support.contexts import Cast

MIGRATIONS = Path("services/model_owner/migrations")


class MovableClock(Clock):
    """The real time, and what a test adds to it."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def forward(self, seconds: float) -> None:
        self.ahead += timedelta(seconds=seconds)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite database, to be copied: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("migrated") / "database.sqlite"
    database = Database(f"sqlite:///{path}")
    migrate.upgrade(database, MIGRATIONS)
    database.close()
    assert not path.with_name("database.sqlite-wal").exists()  # all of it is in the one file
    return path


@pytest.fixture
def make_owner(cast: Cast, broker_url: str, migrated: Path):
    """make_owner(database_url, **settings) -> a context with a migrated database."""
    made: list[Context] = []

    def make(database_url: str | None = None, **settings) -> Context:
        home = cast.home("model-owner")
        if database_url is None and not (home / "database.sqlite").exists():
            shutil.copy(migrated, home)
        ctx = cast.context(
            "model_owner", "model-owner", ModelOwnerSettings, broker_url, database_url, **settings
        )
        ctx.clock = MovableClock()
        if database_url is not None:
            migrate.upgrade(ctx.db, MIGRATIONS)
        made.append(ctx)
        return ctx

    yield make
    for ctx in made:
        ctx.close()


@pytest.fixture
def owner(make_owner, database_url: str) -> Context:
    """On SQLite and on PostgreSQL."""
    return make_owner(database_url)


@pytest.fixture
def lite_owner(make_owner) -> Context:
    return make_owner()


@pytest.fixture
def app_of():
    """app_of(ctx) -> a client of the real app; headers say who calls."""
    opened: list[TestClient] = []

    def make(ctx: Context) -> TestClient:
        client = TestClient(create_app(create_service(), ctx), raise_server_exceptions=False)
        client.__enter__()
        opened.append(client)
        return client

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def federation(lite_owner: Context, cast: Cast, app_of) -> Iterator[Federation]:
    """The owner on SQLite, with three enrolled nodes and a ready model."""
    return Federation(lite_owner, cast, app_of(lite_owner))


@pytest.fixture
def each_federation(owner: Context, cast: Cast, app_of) -> Iterator[Federation]:
    """The same on SQLite and on PostgreSQL."""
    return Federation(owner, cast, app_of(owner))
