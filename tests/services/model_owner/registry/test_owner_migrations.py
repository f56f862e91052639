"""The migrations make what the tables say, and the tables hold what they must."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import IntegrityError

from primia.chassis import migrate
from services.model_owner.registry import store as registry
from services.model_owner.rounds import store
from services.model_owner.rounds.tables import Site
from services.model_owner.tables import Base
from tests.services.model_owner.conftest import MIGRATIONS
from tests.services.model_owner.federation import SPEC

MINE = {
    "models",
    "model_versions",
    "nodes",
    "runs",
    "participants",
    "rounds",
    "contributions",
    "envelopes",
    "run_events",
}


def test_the_migrated_schema_is_the_declared_one(owner):
    with owner.db.engine.connect() as connection:
        found = [str(difference) for difference in migrate.drift(connection, Base.metadata)]
    mine = [text for text in found if any(f"'{table}'" in text for table in MINE)]
    assert mine == []
    assert set(Base.metadata.tables) >= MINE
    migrate.upgrade(owner.db, MIGRATIONS)  # once more changes nothing
    migrate.require_current(owner.db, MIGRATIONS)


def test_numbers_of_versions_are_given_one_after_the_other(owner):
    now = owner.clock.now()
    with owner.db.session() as session:
        registry.add_model(session, "chest", "", SPEC, "alice", now)
        numbers = [
            registry.add_version(session, "chest", "uploaded", "alice", now, image_size=16).version
            for _ in range(3)
        ]
    assert numbers == [2, 3, 4]


def test_a_run_makes_one_version(owner):
    now = owner.clock.now()
    with owner.db.session() as session:
        registry.add_model(session, "chest", "", SPEC, "alice", now)

    def add() -> None:
        with owner.db.session() as session:
            registry.add_version(
                session, "chest", "trained", "alice", now, image_size=16, run="a" * 32
            )

    add()
    with pytest.raises(IntegrityError):
        add()
    with owner.db.reading() as session:
        assert registry.made_by(session, "a" * 32).version == 2
        assert registry.made_by(session, "b" * 32) is None


def test_the_database_itself_keeps_a_node_to_one_run(each_federation):
    federation = each_federation.with_model()
    run = federation.start(nodes=["node-a", "node-b"])
    other = federation.start(nodes=["node-c"], aggregation={"secure": False})

    def engage() -> None:
        with federation.ctx.db.session() as session:
            session.add(Site(run=other, node="node-a", public_key="x"))

    with pytest.raises(IntegrityError):
        engage()
    federation.user("DELETE", f"/rounds/{run}")
    engage()
    with federation.ctx.db.reading() as session:
        assert store.engagements(session) == {"node-a": other, "node-c": other}
