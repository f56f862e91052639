"""Killed anywhere and started again, a run ends with the weights it would have had."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from services.model_owner.registry import weights
from services.model_owner.rounds import opening, progress, store, tasks
from services.model_owner.rounds.tables import Round
from tests.services.model_owner.federation import NODES, Federation

MODES = {
    "secure": {"aggregation": {"secure": True, "threshold": 2}},
    "plain": {"aggregation": {"secure": False, "minimum_nodes": 2}},
}


class Killed(BaseException):
    """Not an error that any code of ours handles."""


def finished(federation: Federation, run: str) -> np.ndarray:
    federation.run_out()
    assert federation.show(run)["state"] == "finished"
    return federation.version_weights(federation.show(run)["final_version"])


def start(federation: Federation, mode: str) -> str:
    return federation.start(rounds=2, version=1, **MODES[mode])


def dies_once(monkeypatch, owner, name: str, *, after: bool) -> list[str]:
    """The function is killed at its first call, before or after it has done its work."""
    original, deaths = getattr(owner, name), []

    def dying(*args, **kwargs):
        if deaths:
            return original(*args, **kwargs)
        deaths.append(name)
        if after:
            original(*args, **kwargs)
        raise Killed

    monkeypatch.setattr(owner, name, dying)
    return deaths


POINTS = [
    (opening, "add_updates", True),
    (opening, "_opened_files", False),
    (tasks, "_absorbed", True),
    (opening, "mean_update", True),
    (opening, "write_model", True),
    (tasks, "_record_opening", True),
    (progress, "close", True),
    (tasks, "_forget_round", False),
    (tasks, "_register", True),
    (tasks, "_opened", True),
    (weights, "copy", True),
]


@pytest.fixture(params=[0, 8], ids=["summed at once", "summed together"])
def together(request, monkeypatch) -> int:
    """How many updates may lie beside the sum."""
    monkeypatch.setattr(opening, "TOGETHER", request.param)
    return request.param


@pytest.mark.parametrize("mode", MODES)
def test_a_worker_that_dies_anywhere_is_taken_over(federation, monkeypatch, mode, together):
    """It dies ten or eleven times in one run, at each point once."""
    federation.with_model()
    wanted = finished(federation, start(federation, mode))
    run = start(federation, mode)
    points = [each for each in POINTS if not (together and each[1] == "add_updates")]
    deaths = [dies_once(monkeypatch, owner, name, after=after) for owner, name, after in points]
    for _ in range(2 * len(POINTS)):
        try:
            federation.run_out()
        except Killed:
            continue
        break
    assert [len(died) for died in deaths] == [1] * len(points)
    np.testing.assert_array_equal(finished(federation, run), wanted)


@pytest.mark.parametrize("mode", MODES)
def test_the_sum_is_the_same_however_often_it_is_written(federation, monkeypatch, mode):
    federation.with_model()
    found = []
    for together in (0, 1, 8):
        monkeypatch.setattr(opening, "TOGETHER", together)
        found.append(finished(federation, start(federation, mode)))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("mode", MODES)
def test_an_owner_that_is_restarted_in_every_phase_goes_on(federation, make_owner, app_of, mode):
    """It goes down after each answer of one node, when the message to its worker is lost."""
    federation.with_model()
    wanted = finished(federation, start(federation, mode))
    run = start(federation, mode)
    kinds = []
    while federation.show(run)["state"] not in ("finished", "failed"):
        item = federation.nodes["node-a"].step()
        kinds += [item.kind] if item else []
        federation.ctx.close()
        federation.ctx = make_owner()
        federation.app = app_of(federation.ctx)
        federation.turn("node-b", "node-c")
    middle = ["share_keys", "upload", "confirm", "unmask"] if mode == "secure" else ["upload"]
    assert kinds == ["review", *2 * ["train", *middle], "evaluate"]
    np.testing.assert_array_equal(finished(federation, run), wanted)


def test_a_dead_workers_lease_runs_out_and_another_absorbs(federation, monkeypatch):
    monkeypatch.setattr(opening, "TOGETHER", 0)
    federation.with_model()
    run = federation.start(**MODES["secure"])
    federation.until("upload")
    with federation.ctx.db.session() as session:
        row = store.find_round(session, run, 1)
        row.lease_owner = "dead"
        row.lease_until = federation.ctx.clock.now() + timedelta(seconds=30)
        round_id = row.id
    federation.nodes["node-a"].step()
    tasks.absorb(federation.ctx, round_id)
    with federation.ctx.db.reading() as session:
        assert session.get(Round, round_id).summed == 0
    federation.ctx.clock.forward(31)
    tasks.absorb(federation.ctx, round_id)
    with federation.ctx.db.reading() as session:
        assert session.get(Round, round_id).summed == 1


def test_tasks_that_run_twice_do_not_show(federation):
    federation.with_model()
    run = federation.start(**MODES["secure"])
    federation.until("upload")
    federation.turn(*NODES)
    with federation.ctx.db.reading() as session:
        round_id = store.find_round(session, run, 1).id
    for task, row_id in [
        (tasks.absorb, round_id),
        (tasks.open_round, round_id),
        (tasks.finish, run),
        (tasks.clean, run),
    ]:
        before = federation.show(run)
        task(federation.ctx, row_id)
        assert federation.show(run) == before
    federation.run_out()
    versions = federation.user("GET", "/models/chest/versions").json()["versions"]
    tasks.finish(federation.ctx, run)
    tasks.clean(federation.ctx, run)
    assert federation.user("GET", "/models/chest/versions").json()["versions"] == versions


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"0123")])
def test_a_sum_that_the_disk_lost_costs_the_round_and_not_the_run(federation, together, damage):
    federation.with_model()
    run = federation.start(**MODES["secure"])
    federation.until("upload")
    federation.turn("node-a", "node-b")
    for file in (federation.ctx.files.root / "runs" / run / "1").iterdir():
        damage(file)
    federation.run_out()
    shown = federation.show(run)
    assert shown["state"] == "finished"
    assert shown["reports"][0]["phase"] == "abandoned"
    assert "not on the disk as it was" in shown["reports"][0]["reason"]


def test_a_cancelled_run_is_not_opened_by_a_worker_in_the_middle_of_it(federation, monkeypatch):
    federation.with_model()
    run = federation.start(**MODES["plain"])
    federation.until("train")
    original = opening.write_model

    def cancelled_meanwhile(*args):
        written = original(*args)
        federation.user("DELETE", f"/rounds/{run}")
        return written

    monkeypatch.setattr(opening, "write_model", cancelled_meanwhile)
    federation.run_out()
    assert federation.show(run)["state"] == "cancelled"
    assert federation.show(run)["rounds_done"] == 0
    assert not (federation.ctx.files.root / "runs" / run).exists()


def test_a_final_model_that_the_disk_lost_fails_the_run(federation):
    federation.with_model()
    run = federation.start(**MODES["plain"])
    federation.until("evaluate", number=2)
    path = federation.ctx.files.root / federation.row(run).weights
    for name in NODES:
        federation.nodes[name].step()
    path.unlink()
    federation.work()
    shown = federation.show(run)
    assert shown["state"] == "failed"
    assert "gone from the disk" in shown["reason"]
