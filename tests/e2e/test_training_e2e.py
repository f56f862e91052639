"""Whole training runs with real processes: plain and secure, on both databases, through crashes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from primia.errors import PeerRefused
from primia.messages.rounds import Timeouts
from primia.messages.runs import RunReport
from tests.support.grid import World

pytestmark = pytest.mark.e2e
# A site that has gone is waited for this long and no longer.
IMPATIENT = Timeouts(train=25, exchange=25)


def weights(world: World, model: str, report: RunReport, folder: Path) -> dict[str, np.ndarray]:
    assert report.final_version is not None, report.reason
    file = folder / f"{model}-{report.final_version}.safetensors"
    world.owner.weights(model, report.final_version, file)
    return load_file(file)


def check_plain_equals_secure(world: World, model: str, folder: Path) -> None:
    plain = world.wait_run(world.start_run(model, secure=False))
    secure = world.wait_run(world.start_run(model, secure=True))
    assert (plain.state, secure.state) == ("finished", "finished")
    left, right = (weights(world, model, report, folder) for report in (plain, secure))
    start = folder / "start.safetensors"
    world.owner.weights(model, 1, start)
    began = load_file(start)
    moved = max(float(np.abs(left[name] - began[name]).max()) for name in left)
    apart = max(float(np.abs(left[name] - right[name]).max()) for name in left)
    assert moved > 1e-3  # it has learned something
    assert apart < 1e-6
    for shown, report in ((True, plain), (False, secure)):
        for site in report.reports[0].sites:
            assert site.samples > 0
            assert (site.loss is not None) is shown
        assert [(site.final is not None and site.final.samples > 0) for site in report.sites] == (
            [shown] * len(report.sites)
        )
    for name in ("training", "received"):  # what no site shows is summed under masks
        one, same = (getattr(report.reports[0], name) for report in (plain, secure))
        assert (same.samples, same.accuracy) == (one.samples, pytest.approx(one.accuracy))
        assert same.loss == pytest.approx(one.loss, abs=1e-5)
    assert plain.final is not None
    assert secure.final is not None
    assert secure.final.samples == plain.final.samples > 0


def test_plain_and_secure_agree(sqlite_world: World, tmp_path: Path):
    check_plain_equals_secure(sqlite_world, sqlite_world.model("agree"), tmp_path)


def test_plain_and_secure_agree_on_postgresql(postgresql_world: World, tmp_path: Path):
    check_plain_equals_secure(postgresql_world, postgresql_world.model("agree"), tmp_path)


def test_a_secure_update_costs_four_bytes_a_value(sqlite_world: World):
    model = sqlite_world.model("bytes")
    report = sqlite_world.wait_run(sqlite_world.start_run(model))
    values = sqlite_world.owner.version(model, 1).values
    assert values
    for site in report.reports[0].sites:
        assert 4 * values <= site.bytes_up <= 1.02 * 4 * values + 4096


@pytest.fixture(scope="session")
def undisturbed(
    sqlite_world: World, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    """The weights that an undisturbed run ends with."""
    model = sqlite_world.model("undisturbed")
    report = sqlite_world.wait_run(sqlite_world.start_run(model, rounds=2, batches=40))
    assert report.state == "finished", report.reason
    return weights(sqlite_world, model, report, tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize(
    ("victim", "parts", "stages"),
    [
        ("hospital-a", ("worker",), ("asked",)),
        ("hospital-b", ("api", "worker"), ("trained", "shared")),
        ("model-owner", ("api",), ("asked", "trained")),
        ("model-owner", ("worker",), ("trained", "shared", "uploaded")),
        ("model-owner", ("api", "worker"), ("shared", "uploaded", "absorbed")),
    ],
)
def test_a_run_goes_on_after_a_crash(
    sqlite_world: World,
    undisturbed: dict[str, np.ndarray],
    tmp_path: Path,
    victim: str,
    parts: tuple[str, ...],
    stages: tuple[str, ...],
):
    world = sqlite_world
    model = world.model(f"crash-{victim}-{'-'.join(parts)}-{stages[0]}")
    run = world.start_run(model, rounds=2, batches=40)
    watched = victim if victim in world.names else "hospital-a"
    world.wait_stage(run, 1, watched, *stages)
    world.kill(victim, *parts)
    world.start(victim, *parts)
    if "api" in parts and victim == "model-owner":
        wait_for_owner(world)
    report = world.wait_run(run)
    assert report.state == "finished", report.reason
    assert all(site.dropped is None for each in report.reports for site in each.sites)
    found = weights(world, model, report, tmp_path)
    assert found.keys() == undisturbed.keys()
    for name, tensor in undisturbed.items():
        assert np.array_equal(found[name], tensor), name


def wait_for_owner(world: World) -> None:
    from primia.grid.processes import up

    up(world.grid)


def test_a_lost_node_costs_its_contribution_and_not_the_round(sqlite_world: World):
    world = sqlite_world
    model = world.model("lost")
    run = world.start_run(model, rounds=1, batches=40, timeouts=IMPATIENT)
    world.wait_stage(run, 1, "hospital-c", "shared", "trained")
    world.kill("hospital-c", "api", "worker")
    try:
        report = world.wait_run(run)
    finally:
        world.start("hospital-c", "api", "worker")
        wait_for_owner(world)
    assert report.state == "finished", report.reason
    lost = [site for site in report.reports[0].sites if site.node == "hospital-c"]
    kept = [site for site in report.reports[0].sites if site.node != "hospital-c"]
    assert lost[0].dropped
    assert all(site.dropped is None for site in kept)


def test_a_cancelled_run_ends_and_frees_the_nodes(sqlite_world: World):
    world = sqlite_world
    model = world.model("cancelled")
    run = world.start_run(model, rounds=50, batches=200)
    world.wait_stage(run, 1, "hospital-a", "asked")
    world.owner.cancel_run(run)
    assert world.owner.run(run).state == "cancelled"
    again = world.wait_run(world.start_run(model))
    assert again.state == "finished", again.reason


def test_two_runs_at_once_on_a_node_are_refused(sqlite_world: World):
    world = sqlite_world
    model = world.model("twice")
    run = world.start_run(model, rounds=50, batches=200)
    with pytest.raises(PeerRefused) as refusal:
        world.start_run(model)
    assert refusal.value.extra["status_of_peer"] == 409
    assert run in str(refusal.value)
    world.owner.cancel_run(run)


def test_events_tell_a_run_from_start_to_end(sqlite_world: World):
    world = sqlite_world
    model = world.model("events")
    run = world.start_run(model)
    kinds = [kind for kind, _ in world.owner.run_events(run)]
    assert len(kinds) >= 3
    assert world.owner.run(run).state == "finished"


def test_logs_are_json_and_carry_request_ids_between_services(sqlite_world: World):
    lines = [
        json.loads(line)
        for line in sqlite_world.logs("model-owner").splitlines()
        if line.startswith("{")
    ]
    theirs = [
        json.loads(line)
        for line in sqlite_world.logs("hospital-a").splitlines()
        if line.startswith("{")
    ]
    requested = {line.get("request_id") for line in lines if line.get("caller") == "hospital-a"}
    worked = {line.get("request_id") for line in theirs}
    assert lines
    assert requested & worked
