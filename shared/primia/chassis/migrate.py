"""Alembic from code: bring a service's database to its newest revision, or say that it is not."""

from __future__ import annotations

from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData

from primia.chassis.db import Database
from primia.errors import Unavailable


def _scripts(location: Path) -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(location))
    config.set_main_option("path_separator", "os")
    return ScriptDirectory.from_config(config)


def upgrade(db: Database, location: Path) -> None:
    """Run the revisions that are missing, in one transaction. ``location`` holds ``versions/``."""
    scripts = _scripts(location)

    def steps(revision: object, _context: MigrationContext) -> object:
        return scripts._upgrade_revs("head", revision)  # type: ignore[arg-type]

    config = Config()
    with (
        db.engine.begin() as connection,
        EnvironmentContext(config, scripts, fn=steps) as environment,
    ):
        environment.configure(connection=connection, render_as_batch=True)
        environment.run_migrations()


def require_current(db: Database, location: Path) -> None:
    """Raises Unavailable if the database is older (or newer) than this code."""
    wanted = set(_scripts(location).get_heads())
    with db.engine.connect() as connection:
        found = set(MigrationContext.configure(connection).get_current_heads())
    if found != wanted:
        raise Unavailable(
            "The database is not at this version's schema.",
            hint="Run the service's `migrate` command.",
        )


def drift(connection: Connection, metadata: MetaData) -> list[object]:
    """What the tables in code have that the migrated database has not, and the reverse."""
    found = MigrationContext.configure(connection, opts={"compare_type": False})
    return list(compare_metadata(found, metadata))
