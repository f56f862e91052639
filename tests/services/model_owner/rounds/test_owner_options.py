"""What a run may be asked beside plain averaging of all sites over all rounds."""

from __future__ import annotations

import numpy as np
import pytest

from primia.learning.config import ServerOptimiser
from primia.learning.server import Moments, step
from services.model_owner.rounds.places import SILENT
from tests.services.model_owner.federation import NODES, Federation, exact_mean

PLAIN = {"aggregation": {"secure": False}}
STOPS = {"patience": 1}
NO_VALIDATION = {"training": {"image_size": 16, "validation_fraction": 0}}


def stepped(federation: Federation, config: ServerOptimiser, rounds: int) -> np.ndarray:
    """Version 1 after so many steps of the server optimiser on the exact means."""
    weights = federation.version_weights(1).copy()
    size = federation.layout.group_size("parameters")
    moments = Moments.initial(size, config)
    for number in range(1, rounds + 1):
        step(weights, exact_mean(federation, number), size, config, moments)
    return weights


@pytest.mark.parametrize("kind", ["fedavgm", "fedadam"])
def test_the_server_optimiser_steps_on_the_opened_mean(federation, kind):
    federation.with_model()
    run = federation.start(rounds=3, server={"kind": kind}, **PLAIN)
    federation.run_out()
    assert federation.show(run)["state"] == "finished"
    wanted = stepped(federation, ServerOptimiser(kind=kind), 3)
    np.testing.assert_allclose(federation.version_weights(2), wanted, atol=1e-6)


def test_the_server_optimiser_survives_a_restart_in_the_middle(federation, monkeypatch):
    federation.with_model()
    run = federation.start(rounds=2, server={"kind": "fedyogi"}, **PLAIN)
    federation.until("train", number=2)
    from services.model_owner.rounds import tasks

    for name in NODES:
        federation.nodes[name].step()
    with monkeypatch.context() as patch:  # it dies once the moments and the weights are written
        patch.setattr(tasks, "_opened", lambda *_: None)
        for _ in range(3):
            for name in NODES:
                federation.nodes[name].step()
            with federation.ctx.db.reading() as session:
                rounds = tasks.store.wanting_absorption(session, federation.ctx.clock.now())
            for row in rounds:
                tasks.absorb(federation.ctx, row)
        with federation.ctx.db.reading() as session:
            (row,) = tasks.store.wanting_opening(session, federation.ctx.clock.now())
        tasks.open_round(federation.ctx, row)
    federation.run_out()
    assert federation.show(run)["state"] == "finished"
    wanted = stepped(federation, ServerOptimiser(kind="fedyogi"), 2)
    np.testing.assert_allclose(federation.version_weights(2), wanted, atol=1e-6)


def test_a_draw_of_sites_takes_part_in_each_round(federation):
    federation.with_model()
    run = federation.start(
        rounds=6, aggregation={"secure": True, "sites_per_round": 2, "threshold": 2}
    )
    federation.run_out()
    shown = federation.show(run)
    assert (shown["state"], shown["threshold"]) == ("finished", 2)
    drawn = [tuple(site["node"] for site in report["sites"]) for report in shown["reports"]]
    assert {len(names) for names in drawn} == {2}
    assert set().union(*drawn) == set(NODES)


def test_a_run_stops_when_no_round_makes_a_better_model(federation):
    federation.with_model()
    for node in federation.nodes.values():
        node.losses = {1: 0.9, 2: 0.6, 3: 0.61, 4: 0.62, 5: 0.1}
    run = federation.start(rounds=9, stopping={"patience": 2}, **PLAIN)
    federation.run_out()
    shown = federation.show(run)
    assert (shown["state"], shown["rounds_done"], shown["final_version"]) == ("finished", 4, 2)


@pytest.mark.parametrize(
    ("last", "best", "chosen"), [(0.65, 0.6, "best"), (0.3, 0.6, "last"), (0.6, 0.6, "last")]
)
def test_the_best_model_on_validation_images_becomes_the_version(federation, last, best, chosen):
    federation.with_model()
    for node in federation.nodes.values():
        node.losses = {1: 0.9, 2: 0.6, 3: 0.7, "last": last, "best": best}
    run = federation.start(rounds=3, selection="best_loss", **PLAIN)
    federation.run_out()
    shown = federation.show(run)
    assert shown["final"]["loss"] == pytest.approx(min(last, best))
    rounds = 1 if chosen == "best" else 3
    wanted = federation.version_weights(1).copy()
    for number in range(1, rounds + 1):
        wanted += exact_mean(federation, number)
    np.testing.assert_array_equal(federation.version_weights(2), wanted)
    assert federation.row(run).course["chosen"] == chosen
    assert not (federation.ctx.files.root / "runs" / run).exists()


def test_versions_are_compared_at_every_site(federation):
    federation.with_model()
    federation.start(rounds=1, **PLAIN)
    federation.run_out()
    for number, node in enumerate(federation.nodes.values()):
        node.losses = {"last": 0.4, "version-1": 0.9 + number, "version-2": 0.5}
    run = federation.start(rounds=0, version=2, compare=[1], **PLAIN)
    federation.run_out()
    shown = federation.show(run)
    assert (shown["state"], shown["final_version"], shown["rounds_done"]) == ("finished", None, 0)
    assert shown["final"]["loss"] == pytest.approx(0.4)
    with federation.ctx.db.reading() as session:
        from services.model_owner.rounds import store

        found = [site.evaluations["version-1"]["scores"] for site in store.sites(session, run)]
    assert [scores["loss"] for scores in found] == pytest.approx([0.9, 1.9, 2.9])
    assert federation.user("GET", "/models/chest/versions/3/weights").status_code == 404


def test_sites_that_stop_early_end_the_run_when_all_have(federation):
    federation.with_model()
    for number, node in enumerate(federation.nodes.values(), start=1):
        node.stops_after = number
    stopping = {**STOPS, "when_stopped": "contribute"}
    run = federation.start(
        rounds=9, training={"image_size": 16, "local_stopping": stopping}, **PLAIN
    )
    federation.run_out()
    shown = federation.show(run)
    assert [len(report["sites"]) for report in shown["reports"]] == [3, 3, 3]
    assert shown["state"] == "finished"


def test_a_site_that_stops_early_may_leave(federation):
    federation.with_model()
    federation.nodes["node-b"].stops_after = 1
    run = federation.start(rounds=2, training={"image_size": 16, "local_stopping": STOPS})
    federation.run_out()
    shown = federation.show(run)
    names = [[site["node"] for site in report["sites"]] for report in shown["reports"]]
    assert names == [list(NODES), ["node-a", "node-c"]]
    assert shown["state"] == "finished"


def test_a_site_that_stops_in_an_abandoned_round_is_asked_again(federation):
    federation.with_model()
    federation.nodes["node-b"].stops_after = 1
    settings = {"image_size": 16, "local_stopping": STOPS}
    run = federation.start(rounds=2, training=settings)
    federation.until("share_keys")
    for name in ("node-a", "node-c"):
        federation.nodes[name].fail(run)
    assert federation.show(run)["reports"][0]["phase"] == "abandoned"
    again = federation.nodes["node-b"].ask()
    assert (again.kind, again.round, again.uncounted) == ("train", 2, (1,))
    federation.run_out()
    shown = federation.show(run)
    names = [[site["node"] for site in report["sites"]] for report in shown["reports"]]
    assert names == [list(NODES), list(NODES), ["node-a", "node-c"]]
    assert (shown["state"], shown["rounds_done"]) == ("finished", 2)


def test_a_site_that_drops_out_behind_its_report_has_not_stopped(federation):
    federation.with_model()
    federation.nodes["node-b"].stops_after = 1
    settings = {"image_size": 16, "optimiser_state": "kept", "local_stopping": STOPS}
    run = federation.start(rounds=2, training=settings)
    federation.until("share_keys")
    federation.nodes["node-b"].fail(run)
    for _ in range(4):  # the others bring the round to its end
        federation.turn("node-a", "node-c")
    assert federation.nodes["node-b"].ask().uncounted == (1,)
    assert federation.nodes["node-a"].ask().uncounted == ()


def test_a_lost_site_costs_one_timeout_and_comes_back(federation):
    federation.with_model()
    run = federation.start(rounds=6, **PLAIN)
    federation.until("train")
    federation.turn("node-a", "node-b")
    federation.forward(200)
    for _ in range(7):
        federation.turn("node-a", "node-b")
    reports = federation.show(run)["reports"]
    assert reports[0]["sites"][2]["dropped"] == SILENT
    for report in reports[1:3]:
        assert [site["node"] for site in report["sites"]] == ["node-a", "node-b"]
    federation.nodes["node-c"].ask()
    federation.run_out()
    assert len(federation.show(run)["reports"][-1]["sites"]) == 3
    assert federation.show(run)["state"] == "finished"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"training": {"image_size": 16, "class_weights": [1, 2, 3]}}, "3 class weights"),
        ({"aggregation": {"sites_per_round": 4}}, "sites_per_round is 4"),
        ({"aggregation": {"sites_per_round": 1}}, "at least two sites"),
        ({"aggregation": {"sites_per_round": 2, "threshold": 3}}, "threshold 3"),
        ({"aggregation": {"secure": False, "sites_per_round": 2, "minimum_nodes": 3}}, "minimum"),
        ({"server": {"kind": "average", "learning_rate": 2}}, "averaging"),
        ({"server": {"kind": "fedprox"}}, "kind"),
        ({"stopping": {"patience": 0}}, "patience"),
        ({"selection": "best_test"}, "selection"),
        ({"compare": [1, 1]}, "twice"),
        ({**NO_VALIDATION, "selection": "best_loss"}, "selection need"),
        ({**NO_VALIDATION, "stopping": {"patience": 3}}, "stopping and"),
        ({"training": {**NO_VALIDATION["training"], "local_stopping": {}}}, "local stopping"),
        (
            {"training": {"local_stopping": {**STOPS, "when_stopped": "contribute"}}},
            "uncover the other sites",
        ),
        ({"rounds": 0, "statistics": {"normalise": True}}, "before training"),
        ({"compare": [7]}, "no version 7"),
        ({"training": {"image_size": 16, "algorithm": "fedsgd", "epochs": 2}}, "fedsgd"),
    ],
)
def test_what_cannot_be_is_refused_before_any_node_is_asked(federation, change, said):
    federation.with_model()
    body = {"model": "chest", "nodes": list(NODES), "rounds": 1, "training": {"image_size": 16}}
    answer = federation.user("POST", "/rounds", json={**body, **change})
    assert answer.status_code in (404, 422)
    assert said in answer.text
    assert all(node.ask() is None for node in federation.nodes.values())
