from __future__ import annotations

import pytest

from primia.chassis import migrate
from primia.chassis.context import Context
from primia.errors import Conflict, NotFound
from primia.learning.datasets import Inspection, Problem
from primia.learning.manifest import DatasetManifest, Entry
from services.data_node.datasets import store
from services.data_node.datasets.store import DatasetProblem
from services.data_node.tables import Base

MANIFEST = DatasetManifest.of(
    [Entry("a/1.png", "a", "p1", "0" * 64), Entry("b/1.png", "b", "p2", "1" * 64)]
)


def add(ctx: Context, name: str = "chest", dataset_id: str = "1" * 32):
    with ctx.db.session() as session:
        return store.register(
            session,
            dataset_id=dataset_id,
            name=name,
            kind="folder",
            place="/srv/images",
            patient_pattern=None,
            bad_files="strict",
            now=ctx.clock.now(),
        )


def test_the_migrations_make_the_tables_that_the_code_has(node: Context):
    with node.db.engine.connect() as connection:
        drift = migrate.drift(connection, Base.metadata)
    own = ("dataset", "run", "local_rounds", "round_secrets", "work_items", "agents")
    assert [each for each in drift if any(f"'{name}" in repr(each) for name in own)] == []


def test_a_data_set_is_registered_once(node: Context):
    add(node)
    with pytest.raises(Conflict, match="a data set chest already"):
        add(node, dataset_id="2" * 32)
    with node.db.reading() as session:
        assert [row.name for row in store.listing(session)] == ["chest"]
        assert store.listing(session, "ready") == []


def test_a_rejected_one_makes_room_for_the_next(node: Context):
    add(node)
    with node.db.session() as session:
        row = store.find(session, "chest")
        store.keep_problems(session, row, [("a/2.png", "error", "is damaged")], 1)
        store.reject(row, "1 file cannot be used.", node.clock.now())
    add(node, dataset_id="2" * 32)
    with node.db.reading() as session:
        row = store.find(session, "chest")
        assert (row.id, row.state, row.errors) == ("2" * 32, "validating", 0)
        assert session.query(DatasetProblem).count() == 0


def test_accepting_keeps_the_manifest_and_its_counts(node: Context):
    add(node)
    with node.db.session() as session:
        store.accept(session, store.find(session, "chest"), MANIFEST, node.clock.now())
    with node.db.reading() as session:
        row = store.find_ready(session, "chest")
        assert (row.classes, row.images, row.patients) == ({"a": 1, "b": 1}, 2, 2)
        assert store.manifest(session, row) == MANIFEST
        assert row.digest == MANIFEST.digest


def test_one_that_is_not_ready_has_no_manifest_and_cannot_be_used(node: Context):
    row = add(node)
    with node.db.reading() as session:
        with pytest.raises(Conflict, match="is validating, not ready"):
            store.find_ready(session, "chest")
        with pytest.raises(NotFound, match="never validated"):
            store.manifest(session, row)
        with pytest.raises(NotFound, match="no data set other"):
            store.find(session, "other")


def test_problems_are_paged_in_order(node: Context):
    add(node)
    with node.db.session() as session:
        wrong = [(f"a/{number}.png", "error", "is damaged") for number in range(7)]
        store.keep_problems(session, store.find(session, "chest"), wrong, 7)
    with node.db.reading() as session:
        row = store.find(session, "chest")
        first = store.problem_page(session, row, 0, 4)
        rest = store.problem_page(session, row, first[-1].id, 4)
    assert [each.file for each in first + rest] == [f"a/{number}.png" for number in range(7)]


def test_long_texts_are_cut_not_refused(node: Context):
    add(node)
    with node.db.session() as session:
        row = store.find(session, "chest")
        store.keep_problems(session, row, [("x" * 5000, "error", "y" * 5000)], 1)
        store.reject(row, "z" * 5000, node.clock.now())
    with node.db.reading() as session:
        row = store.find(session, "chest")
        page = store.problem_page(session, row, 0, 10)
        assert (len(row.reason), len(page[0].file), len(page[0].reason)) == (1000, 1000, 1000)


def test_a_data_set_in_use_stays_until_it_is_released(node: Context):
    add(node)
    with node.db.session() as session:
        row = store.find(session, "chest")
        store.accept(session, row, MANIFEST, node.clock.now())
        store.hold(session, row, "run 1")
    with pytest.raises(Conflict, match="in use by run 1"), node.db.session() as session:
        store.remove(session, store.find(session, "chest"))
    with node.db.session() as session:
        store.release(session, "run 1")
        store.remove(session, store.find(session, "chest"))
    with node.db.reading() as session:
        assert store.listing(session) == []


def test_the_verdict_follows_what_was_asked_for(node: Context):
    row = add(node)
    assert store.judge(row, Inspection(MANIFEST, (Problem("a/1.png", "is damaged"),))) is not None
    assert store.judge(row, Inspection(MANIFEST, ())) is None
