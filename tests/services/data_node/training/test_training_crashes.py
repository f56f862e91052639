"""A site that dies at any point goes on as if it had not."""

from __future__ import annotations

import numpy as np
import pytest

from primia.aggregation.wire import HEADER_BYTES
from primia.errors import PeerUnavailable, StorageFull
from primia.messages import rounds as messages
from services.data_node.training import delivery, intake, steps, store, tasks
from services.data_node.training.job import Job
from services.data_node.training.tables import WorkRow
from tests.services.data_node.training.conftest import fetch, item_row, run_row, turn
from tests.support.owner_double import RUN

KINDS = ["report", "envelopes", "update", "confirmation", "shares"]


class Killed(BaseException):
    """What no handler of the code under test may catch."""


def kill_once(monkeypatch, owner: object, name: str) -> None:
    real = getattr(owner, name)

    def dying(*_args, **_options):
        monkeypatch.setattr(owner, name, real)
        raise Killed

    monkeypatch.setattr(owner, name, dying)


def before(grid, kind: str) -> None:
    """All nodes have done what comes before this kind of answer."""
    place = KINDS.index(kind)
    grid.until(KINDS[place - 1] if place else "decision", 1 if place else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_between_stored_and_sent_nothing_changes_any_more(federation, monkeypatch, kind: str):
    grid = federation(secure=True, rounds=1)
    before(grid, kind)
    node = grid.nodes[0]
    kill_once(monkeypatch, delivery, "_send")
    with pytest.raises(Killed):
        turn(node)
    assert ("node-a", kind, 1) not in grid.owner.answers
    row = intake.take_in(node, fetch(node))
    stored = item_row(node, row)
    update = node.files.root / "rounds" / RUN / "1" / "update.bin"
    expected = update.read_bytes() if kind == "update" else stored.answer.encode()
    tasks.work(node, row)
    assert grid.owner.answers["node-a", kind, 1] == expected
    grid.finish()
    assert run_row(node).state == "finished"


@pytest.mark.parametrize("kind", KINDS)
def test_sent_but_not_noted_is_sent_again_alike(federation, monkeypatch, kind: str):
    grid = federation(secure=True, rounds=1)
    before(grid, kind)
    node = grid.nodes[0]
    kill_once(monkeypatch, delivery, "_sent")
    with pytest.raises(Killed):
        turn(node)
    with node.db.reading() as session:
        (due,) = store.due_items(session, node.clock.now())
    tasks.work(node, due)
    assert [entry for entry in grid.owner.log if entry[:2] == ("node-a", kind)] == [
        ("node-a", kind, 1, 204),
        ("node-a", kind, 1, 204),
    ]
    assert item_row(node, due).state == "sent"
    assert run_row(node).rounds_done == (kind == "shares")


@pytest.mark.parametrize("kind", KINDS)
def test_computed_but_not_stored_is_computed_again(federation, monkeypatch, kind: str):
    grid = federation(secure=True, rounds=1)
    before(grid, kind)
    node = grid.nodes[0]
    kill_once(monkeypatch, Job, "answer")
    with pytest.raises(Killed):
        turn(node)
    folder = node.files.root / "rounds" / RUN / "1"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    row = turn(node)
    assert item_row(node, row).state == "sent"
    if kind == "update":
        assert grid.owner.answers["node-a", kind, 1] == first["update.bin"]
    grid.finish()
    assert run_row(node).state == "finished"


def test_a_plain_change_that_became_the_update_before_a_crash_is_sent(federation, monkeypatch):
    grid = federation(secure=False, rounds=1)
    grid.until("report", 1)
    node = grid.nodes[0]
    folder = node.files.root / "rounds" / RUN / "1"
    change = (folder / "change.frame").read_bytes()
    kill_once(monkeypatch, Job, "answer")
    with pytest.raises(Killed):
        turn(node)
    assert not (folder / "change.frame").exists()
    row = turn(node)
    assert item_row(node, row).state == "sent"
    assert grid.owner.answers["node-a", "update", 1] == change


def test_training_again_makes_the_identical_change(federation, monkeypatch):
    grid = federation(secure=True, rounds=1)
    before(grid, "report")
    node = grid.nodes[0]
    change = node.files.root / "rounds" / RUN / "1" / "change.frame"
    kill_once(monkeypatch, Job, "answer")
    with pytest.raises(Killed):
        turn(node)
    first = np.fromfile(change, "<f4", offset=HEADER_BYTES)
    change.unlink()
    turn(node)
    second = np.fromfile(change, "<f4", offset=HEADER_BYTES)
    assert np.abs(first).max() > 0
    np.testing.assert_array_equal(first, second)


def test_a_download_that_broke_off_goes_on(federation):
    grid = federation(secure=True, rounds=1)
    before(grid, "report")
    node, whole = grid.nodes[0], grid.owner.file(1)
    partial = node.files.path("rounds", RUN, "1", "weights.safetensors")
    partial.write_bytes(whole[:1000])
    assert item_row(node, turn(node)).state == "sent"


def test_an_owner_that_is_away_costs_a_delay_and_no_answer(federation, monkeypatch):
    grid = federation(secure=True, rounds=1)
    before(grid, "report")
    node = grid.nodes[0]

    def away(*_args):
        raise PeerUnavailable("model-owner cannot be reached (ConnectError).")

    with monkeypatch.context() as patched:
        patched.setattr(delivery, "_send", away)
        row = turn(node)
    stored = item_row(node, row)
    assert (stored.state, run_row(node).error_code) == ("answered", "peer-unavailable")
    assert stored.not_before > node.clock.now()
    with node.db.reading() as session:
        assert store.due_items(session, node.clock.now()) == []
        assert store.due_items(session, node.clock.after(60)) == [row]
    tasks.work(node, row)
    assert item_row(node, row).state == "sent"
    assert run_row(node).error_code is None


def test_a_full_disk_is_told_and_nothing_is_lost(federation, monkeypatch):
    grid = federation(secure=True, rounds=1)
    before(grid, "report")
    node = grid.nodes[0]

    def full(_size):
        raise StorageFull("100 bytes are needed and 0 are free beside the reserve of 0.")

    with monkeypatch.context() as patched:
        patched.setattr(node.files, "require", full)
        row = turn(node)
    assert item_row(node, row).state == "open"
    assert run_row(node).error_code == "storage-full"
    assert not [entry for entry in grid.owner.log if entry[1] == "failure"]
    tasks.work(node, row)
    assert item_row(node, row).state == "sent"
    assert run_row(node).error_code is None


def test_a_process_that_is_asked_to_end_leaves_the_item_open(federation):
    grid = federation(secure=True, rounds=1)
    before(grid, "report")
    node = grid.nodes[0]
    node.jobs.stop()
    row = turn(node)
    assert item_row(node, row).state == "open"
    node.jobs._stopping.clear()
    tasks.work(node, row)
    assert item_row(node, row).state == "sent"


def test_an_item_that_kills_every_worker_is_given_up(federation, monkeypatch):
    grid = federation(secure=True, rounds=1)
    before(grid, "report")
    node = grid.nodes[0]
    row = intake.take_in(node, fetch(node))

    def deadly(*_args):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(steps, "handle", deadly)
        for _ in range(8):
            with pytest.raises(Killed):
                tasks.work(node, row)
    tasks.work(node, row)
    told = messages.Failure.model_validate_json(grid.owner.answers["node-a", "failure", 0])
    assert told.code == "interrupted"
    assert run_row(node).error_code == "interrupted"


def test_an_item_held_by_another_worker_is_left_alone(federation):
    grid = federation(secure=True, rounds=1)
    before(grid, "report")
    node = grid.nodes[0]
    row = intake.take_in(node, fetch(node))
    with tasks.lease(node.db, node.clock, WorkRow, row) as held:
        assert held is not None
        tasks.work(node, row)
        assert item_row(node, row).state == "open"


def test_the_sweep_sends_what_is_due(federation, monkeypatch):
    grid = federation(secure=True, rounds=1)
    before(grid, "report")
    node = grid.nodes[0]
    row = intake.take_in(node, fetch(node))
    sent: list[tuple[str, str]] = []
    monkeypatch.setattr(node.jobs, "enqueue", lambda task, item: sent.append((task, item)))
    tasks.resume(node)
    assert sent == [("training.work", row)]
