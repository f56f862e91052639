"""A data node as a real process has it: migrated database, keys, enrolled principals, the app."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from primia.chassis import migrate
from primia.chassis.app import create_app
from primia.chassis.context import Context
from primia.chassis.service import Service
from services.data_node.datasets import api as datasets_api
from services.data_node.settings import DataNodeSettings
from services.data_node.tables import Base
from services.data_node.training import api as training_api
from tests.support.contexts import Cast

MIGRATIONS = Path("services/data_node/migrations")


def data_node_service(background=()) -> Service:
    return Service(
        kind="data_node",
        title="Data node",
        summary="",
        settings=DataNodeSettings,
        metadata=Base.metadata,
        migrations=MIGRATIONS,
        routers=[datasets_api.router, training_api.router],
        tasks={},
        sweeps={},
        background=background,
    )


@pytest.fixture
def images_root(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    root.mkdir()
    return root


@pytest.fixture
def make_node(cast: Cast, broker_url: str, images_root: Path, tmp_path: Path):
    """make_node(name, **settings) -> a context with a migrated database."""
    made: list[Context] = []

    def make(name: str = "node-a", database_url: str | None = None, **settings) -> Context:
        values = {"data_roots": (images_root,), **settings}
        ctx = cast.context("data_node", name, DataNodeSettings, broker_url, database_url, **values)
        migrate.upgrade(ctx.db, MIGRATIONS)
        made.append(ctx)
        return ctx

    yield make
    for ctx in made:
        ctx.close()


@pytest.fixture
def node(make_node, database_url: str) -> Context:
    """node-a, on SQLite and on PostgreSQL."""
    return make_node("node-a", database_url)


@pytest.fixture
def lite_node(make_node) -> Context:
    """node-a on SQLite alone."""
    return make_node("node-a")


@pytest.fixture
def client(lite_node: Context, cast: Cast) -> Iterator[TestClient]:
    """alice at node-a."""
    app = create_app(data_node_service(), lite_node)
    with TestClient(app, raise_server_exceptions=False) as client:
        client.headers.update(cast.headers("alice", "node-a"))
        yield client
