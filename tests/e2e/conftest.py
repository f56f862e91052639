"""One grid on SQLite and one on PostgreSQL for all end-to-end tests; each test its own model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from primia.grid import layout
from tests.support.grid import World, world
from tests.support.servers import fresh_database


@pytest.fixture(scope="session")
def sqlite_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("sqlite") / "grid") as made:
        yield made


@pytest.fixture(scope="session")
def postgresql_world(
    tmp_path_factory: pytest.TempPathFactory, postgresql_server: str
) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        names = (layout.OWNER, layout.DEALER, *layout.NODES)
        databases = {n: stack.enter_context(fresh_database(postgresql_server)) for n in names}
        made = world(tmp_path_factory.mktemp("postgresql-grid") / "grid", databases)
        yield stack.enter_context(made)
