"""Whole runs in one process: the owner's app and tasks, nodes with the real aggregation client."""

from __future__ import annotations

import numpy as np
import pytest

from services.model_owner.rounds import opening
from tests.services.model_owner.federation import (
    NODES,
    Federation,
    exact_mean,
    tolerance,
)

PLAIN = {"aggregation": {"secure": False, "minimum_nodes": 2}}
SECURE = {"aggregation": {"secure": True, "threshold": 2}}


def rounding(weights: np.ndarray) -> np.ndarray:
    """One float32 rounding of a sum near these weights."""
    return np.spacing(np.abs(weights).astype(np.float32))


def assert_mean(federation: Federation, before, after, number: int, names=NODES) -> None:
    wanted = before.astype(np.float64) + exact_mean(federation, number, names)
    slack = tolerance(federation, number, names) + rounding(after)
    assert (np.abs(after - wanted) <= slack).all()
    assert not np.array_equal(before, after)


def test_a_secure_run_ends_with_the_weighted_mean_as_a_version(each_federation):
    federation = each_federation.with_model()
    run = federation.start(rounds=2, **SECURE)
    federation.run_out()
    shown = federation.show(run)
    assert shown["state"] == "finished"
    assert (shown["rounds_done"], shown["final_version"]) == (2, 2)
    before, after = federation.version_weights(1), federation.version_weights(2)
    middle = before + exact_mean(federation, 1)
    wanted = middle + exact_mean(federation, 2)
    slack = tolerance(federation, 1) + tolerance(federation, 2) + 2 * rounding(after)
    assert (np.abs(after - wanted) <= slack).all()
    assert (np.abs(after - before) > 0).mean() > 0.9


def test_a_plain_run_ends_with_exactly_the_mean(each_federation):
    federation = each_federation.with_model()
    run = federation.start(**PLAIN)
    federation.run_out()
    assert federation.show(run)["state"] == "finished"
    wanted = federation.version_weights(1) + exact_mean(federation, 1)
    np.testing.assert_array_equal(federation.version_weights(2), wanted)


def test_the_report_names_rounds_sites_scores_and_bytes(federation):
    federation.with_model()
    run = federation.start(rounds=2, **SECURE)
    federation.run_out()
    shown = federation.show(run)
    first, second = shown["reports"]
    assert [report["phase"] for report in (first, second)] == ["done", "done"]
    assert first["training"] == {"samples": 63, "loss": 1.0, "accuracy": 0.5}
    assert second["training"]["loss"] == pytest.approx(0.5)
    assert first["received"] == {"samples": 12, "loss": pytest.approx(0.7), "accuracy": 0.25}
    assert first["result"] == second["received"]
    assert second["result"] == shown["final"] == {"samples": 12, "loss": 0.5, "accuracy": 0.75}
    payload = 36 + 4 * federation.layout.size
    for site in first["sites"]:
        assert site["stage"] == "revealed"
        assert payload < site["bytes_up"] < payload + 6000
        assert site["bytes_down"] > 4 * federation.layout.size
    assert {site["node"]: site["samples"] for site in shown["sites"]} == {
        "node-a": 10,
        "node-b": 20,
        "node-c": 33,
    }


def test_the_final_version_has_lineage_and_metrics(federation):
    federation.with_model()
    run = federation.start(**SECURE)
    federation.run_out()
    version = federation.user("GET", "/models/chest/versions/2").json()
    assert version["state"] == "ready"
    assert (version["source"], version["parent"], version["run"]) == ("trained", 1, run)
    assert version["metrics"] == {"samples": 12, "loss": 0.5, "accuracy": 0.75}
    assert version["image_size"] == 16


def test_everything_is_tidied_when_a_run_has_ended(federation):
    federation.with_model()
    run = federation.start(**SECURE)
    federation.run_out()
    root = federation.ctx.files.root
    assert not (root / "runs" / run).exists()
    assert len(list((root / "models").iterdir())) == 2
    assert federation.turn() == 0
    with federation.ctx.db.engine.connect() as connection:
        count = "SELECT count(*) FROM envelopes"
        assert connection.exec_driver_sql(count).scalar() == 0
        count = "SELECT count(*) FROM contributions WHERE reveal IS NOT NULL"
        assert connection.exec_driver_sql(count).scalar() == 0


def test_the_owner_never_keeps_more_than_the_sum_and_what_waits(federation, monkeypatch):
    monkeypatch.setattr(opening, "TOGETHER", 1)
    federation.with_model()
    run = federation.start(**PLAIN)
    federation.until("train")
    federation.turn()
    folder = federation.ctx.files.root / "runs" / run / "1"
    seen = []
    for name in NODES:
        assert federation.turn(name) == 1
        files = sorted(folder.iterdir()) if folder.exists() else []
        seen.append([file.name.split("-")[0] for file in files])
    assert seen == [["update"], ["sum"], []]  # the last one opens the round


DROPS = ["share_keys", "upload", "confirm", "unmask"]


@pytest.mark.parametrize("kind", ["train", *DROPS])
def test_a_node_that_falls_silent_costs_its_contribution_only(federation, kind):
    federation.with_model()
    run = federation.start(**SECURE)
    federation.until(kind)
    before = federation.present_weights(run)
    others = ("node-a", "node-b")
    federation.run_out(*others)  # node-c is silent from here on
    assert federation.show(run)["state"] == "running"
    federation.forward()
    federation.run_out(*others)
    counted = NODES if kind in ("confirm", "unmask") else others
    shown = federation.show(run)
    assert shown["state"] == "evaluating"
    report = shown["reports"][0]
    assert report["phase"] == "done"
    dropped = {site["node"]: site["dropped"] for site in report["sites"]}
    assert dropped == {"node-a": None, "node-b": None, "node-c": "It did not answer in time."}
    weighed = others if kind == "train" else NODES
    after = federation.present_weights(run)
    if kind == "train":
        wanted = before.astype(np.float64) + exact_mean(federation, 1, others)
        assert np.abs(after - wanted).max() < 1e-6
    else:
        assert_mean(federation, before, after, 1, counted)
    assert len(weighed) >= 2
    federation.turn("node-c")  # asked again: for the evaluation
    assert federation.show(run)["state"] == "finished"


@pytest.mark.parametrize("kind", ["train", "share_keys", "upload", "confirm", "unmask"])
def test_a_node_that_reports_a_failure_drops_out_at_once(federation, kind):
    federation.with_model()
    run = federation.start(rounds=2, **SECURE)
    federation.until(kind)
    federation.nodes["node-c"].fail(run)
    assert federation.nodes["node-c"].ask() is None
    federation.until("train", "node-a", "node-b", number=2)  # without any deadline
    assert federation.nodes["node-c"].ask().kind == "train"
    federation.run_out()
    shown = federation.show(run)
    assert shown["state"] == "finished"
    sites = {site["node"]: site for site in shown["reports"][0]["sites"]}
    assert sites["node-c"]["dropped"] == "trouble: The disk is on fire."
    assert shown["reports"][1]["sites"][2]["dropped"] is None


def test_a_failure_of_a_round_that_is_over_changes_nothing(federation):
    federation.with_model()
    run = federation.start(rounds=2, **PLAIN)
    federation.until("train", number=2)
    federation.nodes["node-c"].fail(run, round=1)
    assert federation.nodes["node-c"].ask().kind == "train"


def test_too_few_nodes_repeat_the_round_under_the_next_number(federation):
    federation.with_model()
    run = federation.start(repeats=1, **SECURE)
    federation.until("upload")
    before = federation.present_weights(run)
    federation.turn("node-a")
    federation.forward()
    for name in NODES:
        assert federation.nodes[name].ask().round == 2
    np.testing.assert_array_equal(federation.present_weights(run), before)
    federation.run_out()
    shown = federation.show(run)
    assert shown["state"] == "finished"
    assert [report["phase"] for report in shown["reports"]] == ["abandoned", "done"]
    assert "only 1 of the 2 nodes" in shown["reports"][0]["reason"]
    assert "node-b: It did not answer in time." in shown["reports"][0]["reason"]
    assert shown["rounds_done"] == 1
    assert_mean(federation, before, federation.version_weights(2), 2)


def test_a_run_fails_with_the_reason_when_its_repeats_are_used_up(federation):
    federation.with_model()
    run = federation.start(repeats=1, **SECURE)
    federation.until("train")
    federation.forward()
    assert federation.show(run)["state"] == "running"
    federation.forward()
    shown = federation.show(run)
    assert shown["state"] == "failed"
    assert shown["reason"].startswith("Round 2 was abandoned: only 0 of the 2 nodes needed")
    item = federation.nodes["node-a"].step()
    assert (item.kind, item.state, item.reason) == ("stop", "failed", shown["reason"])
    assert federation.nodes["node-a"].ask() is None


def asked_to_train(federation) -> tuple[str, np.ndarray]:
    """A plain run whose sites are all asked to train; its weights."""
    federation.with_model()
    run = federation.start(**PLAIN)
    federation.until("train")
    return run, federation.present_weights(run)


@pytest.mark.parametrize("kind", ["train", "upload"])
def test_a_plain_round_goes_on_without_a_silent_node(federation, kind):
    run, before = asked_to_train(federation)
    others = ("node-b", "node-c")
    federation.turn(*(others if kind == "train" else NODES))
    federation.run_out(*others)
    federation.forward()  # node-a, whose turn comes first, is silent
    federation.run_out(*others)
    shown = federation.show(run)
    assert shown["state"] == "evaluating"
    wanted = before + exact_mean(federation, 1, others)
    np.testing.assert_array_equal(federation.present_weights(run), wanted)


def stages(federation, run: str) -> list[str]:
    return [site["stage"] for site in federation.show(run)["reports"][0]["sites"]]


def test_plain_uploads_come_at_any_time_and_are_summed_in_the_order_of_the_names(federation):
    federation.with_model()
    run = federation.start(**PLAIN)
    federation.until("upload")
    before = federation.present_weights(run)
    federation.turn("node-c")
    assert stages(federation, run) == ["trained", "trained", "uploaded"]
    federation.turn("node-a")
    assert stages(federation, run) == ["absorbed", "trained", "uploaded"]
    federation.turn("node-b")
    wanted = before + exact_mean(federation, 1, NODES)
    np.testing.assert_array_equal(federation.present_weights(run), wanted)


def test_a_plain_round_takes_updates_while_other_sites_still_train(federation):
    """The same item however often it is asked for, whoever has trained meanwhile."""
    run, before = asked_to_train(federation)
    federation.turn("node-a")
    asked = federation.nodes["node-a"].ask()
    assert (asked.kind, dict(asked.samples)) == ("upload", {"node-a": 10})
    federation.turn("node-c")
    assert federation.nodes["node-a"].ask() == asked
    federation.turn("node-a", "node-c")
    assert stages(federation, run) == ["absorbed", "asked", "uploaded"]
    assert federation.show(run)["reports"][0]["phase"] == "training"
    assert federation.nodes["node-a"].ask() is None
    federation.turn("node-b")
    federation.turn("node-b")
    wanted = before + exact_mean(federation, 1, NODES)
    np.testing.assert_array_equal(federation.present_weights(run), wanted)


def test_a_site_that_never_trains_costs_a_plain_round_nothing_that_came_before(federation):
    run, before = asked_to_train(federation)
    others = ("node-a", "node-c")
    federation.run_out(*others)
    assert stages(federation, run) == ["absorbed", "asked", "uploaded"]
    federation.forward()
    wanted = before + exact_mean(federation, 1, others)
    np.testing.assert_array_equal(federation.present_weights(run), wanted)


def test_a_secure_round_takes_no_update_before_all_have_trained(federation):
    federation.with_model()
    federation.start(**SECURE)
    federation.until("train")
    federation.turn("node-a")
    assert federation.nodes["node-a"].ask() is None


def test_a_site_that_never_evaluates_does_not_hold_up_the_end(federation):
    federation.with_model()
    run = federation.start(**PLAIN)
    federation.until("evaluate", number=2)
    federation.turn("node-a")
    federation.nodes["node-b"].fail(run)
    assert federation.show(run)["state"] == "evaluating"
    federation.forward()
    shown = federation.show(run)
    assert shown["state"] == "finished"
    assert shown["final"] == {"samples": 4, "loss": 0.5, "accuracy": 0.75}
    assert [site["reason"] for site in shown["sites"]] == [
        "",
        "trouble: The disk is on fire.",
        "It did not answer in time.",
    ]
