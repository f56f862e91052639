"""Whole runs over real HTTP: nodes with their own databases, the double of a model owner."""

from __future__ import annotations

import numpy as np
import pytest

from primia.aggregation.quantise import tolerance
from primia.aggregation.wire import HEADER_BYTES
from primia.messages import rounds as messages
from services.data_node.datasets import store as datasets
from services.data_node.training import store
from services.data_node.training.approval import BUSY
from services.data_node.training.round_files import RoundFiles
from tests.services.data_node.training.conftest import NAMES, item_row, run_row, turn
from tests.support.owner_double import RUN

SECURE_ROUND = ["report", "envelopes", "update", "confirmation", "shares"]


def kept_change(node) -> np.ndarray:
    file = node.files.root / "rounds" / RUN / "1" / "change.frame"
    return np.fromfile(file, "<f4", offset=HEADER_BYTES)


def test_a_secure_run_from_review_to_stop(federation, database_url: str):
    grid = federation(secure=True, rounds=2, databases=[database_url])
    grid.finish()
    node = grid.nodes[0]
    expected = [("decision", 0)]
    expected += [(kind, number) for number in (1, 2) for kind in SECURE_ROUND]
    expected += [("evaluation", 0), ("acknowledgement", 0)]
    assert grid.owner.kinds("node-a") == expected
    assert {status for *_, status in grid.owner.log} == {204}
    row = run_row(node)
    assert (row.state, row.rounds_done, row.error_code, row.slot) == ("finished", 2, None, None)
    assert row.evaluation["samples"] > 0
    with node.db.reading() as session:
        rounds = store.rounds(session, RUN)
        assert [(each.number, each.phase) for each in rounds] == [(1, "revealed"), (2, "revealed")]
        assert rounds[0].report["received"]["samples"] > 0


def test_nothing_secret_is_left_when_a_run_is_over(federation):
    grid = federation(secure=True, rounds=1)
    grid.finish()
    for node in grid.nodes:
        with node.db.reading() as session:
            assert store.secret(session, RUN, 1) is None
        assert not (node.files.root / "rounds" / RUN).exists()
    with node.db.session() as session:
        datasets.remove(session, datasets.find(session, "chest"))


def test_secrets_go_with_the_round_and_the_change_with_its_upload(federation):
    grid = federation(secure=True, rounds=2)
    grid.until("update", 1)
    node = grid.nodes[0]
    folder = node.files.root / "rounds" / RUN / "1"
    assert sorted(path.name for path in folder.iterdir()) == ["update.bin"]
    grid.until("shares", 1)
    with node.db.reading() as session:
        assert store.secret(session, RUN, 1) is None
    grid.until("report", 2)
    assert not folder.exists()


def test_the_opened_sum_is_the_weighted_mean_within_the_stated_step(federation):
    grid = federation(NAMES, secure=True, rounds=1)
    grid.until("report", 1)
    changes = {
        name: np.fromfile(
            node.files.root / "rounds" / RUN / "1" / "change.frame", "<f4", offset=HEADER_BYTES
        )
        for name, node in grid.by_name.items()
    }
    reports = grid.owner._parsed("report", messages.TrainReport, 1)
    grid.until("shares", 1)
    samples = {name: report.samples for name, report in reports.items()}
    exact = sum(samples[name] * changes[name].astype(float) for name in changes)
    exact /= sum(samples.values())
    exponent = max(max(report.exponents.values()) for report in reports.values())
    # The sum is added to the weights in float32, which rounds once more.
    found = grid.owner.weights[2] - grid.owner.weights[1]
    bound = tolerance(exponent, 3) + 2.0**-23 * np.abs(grid.owner.weights[2]).max()
    assert np.abs(found - exact).max() <= bound
    assert np.abs(exact).max() > 1e-4


def test_a_plain_run_uploads_the_change_itself(federation):
    grid = federation(NAMES[:1], secure=False, rounds=1)
    grid.until("update", 1)
    sent = np.frombuffer(grid.owner.answers["node-a", "update", 1][36:], dtype="<f4")
    np.testing.assert_allclose(
        grid.owner.weights[2] - grid.owner.weights[1], sent, rtol=1e-5, atol=1e-7
    )
    grid.finish()
    assert grid.owner.kinds("node-a")[1:3] == [("report", 1), ("update", 1)]
    assert run_row(grid.nodes[0]).rounds_done == 1


def test_what_goes_up_masked_is_four_bytes_a_value_and_looks_nothing_like_the_change(federation):
    grid = federation(secure=True, rounds=1)
    grid.until("report", 1)
    change = np.fromfile(
        grid.nodes[0].files.root / "rounds" / RUN / "1" / "change.frame", "<f4", offset=HEADER_BYTES
    )
    grid.until("update", 1)
    body = grid.owner.answers["node-a", "update", 1]
    assert len(body) == 36 + 4 * len(change)
    words = np.frombuffer(body[36:], dtype="<u4")
    top = np.bincount(words >> 28, minlength=16) / len(words)
    assert np.abs(top - 1 / 16).max() < 0.01


@pytest.mark.parametrize("kind", ["report", "envelopes", "update", "confirmation", "shares"])
def test_an_item_that_comes_again_gets_the_same_bytes(federation, kind: str):
    grid = federation(secure=True, rounds=1)
    grid.until(kind, 1)
    node = grid.nodes[0]
    first = grid.owner.answers["node-a", kind, 1]
    with grid.owner.lock:
        del grid.owner.answers["node-a", kind, 1]
        grid.owner.number = 1
    later = node.clock.after(60)
    node.clock.now = lambda: later
    row = turn(node)
    assert item_row(node, row).state == "sent"
    assert grid.owner.answers["node-a", kind, 1] == first


def test_two_runs_at_once_are_refused(federation):
    grid = federation(secure=True, rounds=1)
    grid.until("decision")
    other = grid.owner.proposal.model_copy(update={"run": "cd" * 16})
    grid.owner.disturb = lambda _node, _item: messages.Review(run=other.run, proposal=other)
    row = item_row(grid.nodes[0], turn(grid.nodes[0]))
    decision = messages.Decision.model_validate_json(row.answer)
    assert (decision.accepted, decision.reason) == (False, BUSY)
    assert run_row(grid.nodes[0]).state == "active"


def test_moments_are_kept_sealed_from_round_to_round(federation):
    grid = federation(
        secure=True, rounds=3, training={"optimiser_state": "kept", "learning_rate": 1e-3}
    )
    grid.until("shares", 2)
    node = grid.nodes[0]
    folder = node.files.root / "rounds" / RUN
    kept = sorted(path.name for path in folder.glob("*.carried"))
    assert kept == ["1.carried", "2.carried"]  # round 2 may still be trained again from the first
    assert b"standing" not in (folder / "2.carried").read_bytes()
    grid.until("report", 3)
    assert sorted(path.name for path in folder.glob("*.carried")) == ["2.carried", "3.carried"]
    grid.finish()
    assert not folder.exists()


def test_what_a_round_kept_goes_on_only_where_its_update_counts(make_node):
    node = make_node("node-a")
    rounds = {number: RoundFiles(node, RUN, number) for number in (1, 2, 3, 4)}
    rounds[1].keep_carried(b"of the first")
    rounds[2].keep_carried(b"of the second")
    assert rounds[3].read_carried() == b"of the second"
    assert rounds[3].read_carried([2]) == b"of the first"
    assert rounds[3].read_carried([1, 2]) is None
    rounds[3].keep_carried(b"of the third", [2])
    assert rounds[3].read_carried([2]) == b"of the first"  # once more after a crash
    assert rounds[4].read_carried([2]) == b"of the third"


def test_a_site_that_has_stopped_gives_back_what_it_receives(federation):
    stopping = {
        "patience": 1, "measure": "accuracy", "min_change": 1, "when_stopped": "contribute"
    }  # fmt: skip
    grid = federation(NAMES[:1], secure=False, rounds=3, training={"local_stopping": stopping})
    grid.finish()
    reports = [
        grid.owner._parsed("report", messages.TrainReport, number)["node-a"] for number in (1, 2, 3)
    ]
    assert [report.stopped for report in reports] == [False, True, True]
    assert not np.array_equal(grid.owner.weights[2], grid.owner.weights[1])
    np.testing.assert_array_equal(grid.owner.weights[4], grid.owner.weights[3])
