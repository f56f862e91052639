"""Two tasks at once: what one has checked, the other may have changed before it is done."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.data_node.training import intake, local, store, tasks
from tests.services.data_node.training.conftest import RUN, fetch


@pytest.fixture
def grid(federation):
    made = federation(names=("node-a", "node-b"), rounds=3)
    made.until("decision")
    return made


def test_a_round_that_is_overtaken_gives_nothing(grid, monkeypatch):
    """Both have found that they may begin; the later number is begun first."""
    node = grid.nodes[0]
    grid.owner.weights[2] = grid.owner.weights[1]
    first = fetch(node)
    second = intake.take_in(node, first.model_copy(update={"round": 2}))
    entered = {1: threading.Event(), 2: threading.Event()}
    overtaken, trains = threading.Event(), local.train

    def train(ctx, proposal, item, *more):
        entered[item.round].set()
        assert (overtaken if item.round == 1 else entered[1]).wait(60)
        return trains(ctx, proposal, item, *more)

    monkeypatch.setattr(local, "train", train)
    with ThreadPoolExecutor(2) as pool:
        later = pool.submit(tasks.work, node, second)
        assert entered[2].wait(60)
        earlier = pool.submit(tasks.work, node, intake.take_in(node, first))
        later.result(60)
        overtaken.set()
        earlier.result(60)
    with node.db.reading() as session:
        assert [each.number for each in store.rounds(session, RUN)] == [2]
        run = store.find_run(session, RUN)
    assert run.error_code == "unexpected-message"
    assert "round 1 after round 2 had begun" in run.error_detail


def test_a_limit_that_is_lowered_during_training_stops_its_report(grid, monkeypatch):
    node, trains = grid.nodes[0], local.train

    def train(*given):
        result = trains(*given)
        node.settings = node.settings.model_copy(update={"privacy_epsilon": 1.0})
        return result

    monkeypatch.setattr(local, "train", train)
    tasks.work(node, intake.take_in(node, fetch(node)))
    with node.db.reading() as session:
        assert store.rounds(session, RUN) == []
        assert store.find_run(session, RUN).error_code == "privacy-budget-exceeded"
    assert ("report", 1) not in grid.owner.kinds("node-a")
