"""Differentially private runs with the real owner, and each site's ledger and limit."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from rich.console import Console

from primia.chassis.app import create_app
from primia.cli.rounds import tables
from primia.learning.accounting import Release, epsilon
from primia.messages.runs import RunReport
from services.data_node.main import create_service
from services.data_node.privacy import store as ledger
from services.data_node.training import store
from services.model_owner.rounds.store import events
from tests.services.data_node.training.conftest import turn
from tests.services.data_node.training.test_training_with_owner import (  # noqa: F401  # fixtures
    owner,
    play,
    sites,
)
from tests.services.model_owner.federation import SPEC

CENTRAL = {"central": {"clip_norm": 0.5, "noise_multiplier": 2.0}}
TRAINING = {"image_size": 16, "epochs": 1, "batch_size": 4}


def with_group_norm(model_owner) -> str:
    body = {**SPEC.model_dump(mode="json"), "norm": "group", "name": "private"}
    assert model_owner.user("POST", "/models", json=body).status_code == 202
    model_owner.work()
    return "private"


def limited(sites, **settings) -> None:  # noqa: F811
    for node in sites:
        node.settings = node.settings.model_copy(update=settings)


def account(node, cast) -> dict:
    app = TestClient(create_app(create_service(), node))
    answer = app.get("/privacy", headers=cast.headers("alice", node.identity.name))
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["accounts"]
    return found


def test_each_round_is_charged_and_the_limit_ends_it(owner, sites, cast):  # noqa: F811
    model_owner, _ = owner
    limited(sites, privacy_epsilon=4.0)
    settings = {
        "model": with_group_norm(model_owner),
        "rounds": 2,
        "training": TRAINING,
        "privacy": {"dp_sgd": {"epsilon": 3.0}},
    }
    run = model_owner.start(**settings)
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert (shown["state"], shown["reason"]) == ("finished", "")
    for site in shown["reports"][0]["sites"]:  # the noise does not cover these
        assert (site["loss"], site["accuracy"]) == (None, None)
    for node in sites:
        found = account(node, cast)
        assert found["epsilon"] == pytest.approx(3.0, rel=0.01)
        assert found["left"] == pytest.approx(1.0, abs=0.05)
        (of_run,) = found["runs"]
        assert (of_run["run"], of_run["rounds"], found["unprotected"]) == (run, 2, 0)
        with node.db.reading() as session:
            charges = ledger.charges(session, "model-owner")
            view = store.rounds(session, run)[0].report
        assert epsilon([each.release for each in charges], 1e-5) == pytest.approx(found["epsilon"])
        assert view["loss"] > 0  # the site's own to see
    again = model_owner.start(**settings)
    play(model_owner, sites)
    shown = model_owner.show(again)
    assert shown["state"] == "failed"
    assert "The site's privacy limit does not allow the run" in shown["reason"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "privacy limit"),
        ({"privacy": {"dp_sgd": {"noise_multiplier": 0.3}}}, "privacy limit"),
        (
            {"privacy": {"dp_sgd": {"epsilon": 1.0}}, "statistics": {"normalise": True}},
            "privacy limit",
        ),
        ({"privacy": {"dp_sgd": {"epsilon": 0.0001}}}, "too small for the run's steps"),
        ({"training": {**TRAINING, "batch_size": 512}}, "batch is larger"),
    ],
    ids=["no noise", "little noise", "exact statistics", "no budget", "large batch"],
)
def test_nothing_that_an_owner_sends_gets_past_the_limit(owner, sites, changes, reason):  # noqa: F811
    model_owner, _ = owner
    limited(sites, privacy_epsilon=2.0)
    run = model_owner.start(
        **{"model": with_group_norm(model_owner), "training": TRAINING, "rounds": 3, **changes}
    )
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert (shown["state"], shown["rounds_done"]) == ("failed", 0)
    assert reason in shown["reason"]
    for node in sites:
        with node.db.reading() as session:
            assert ledger.charges(session) == []


def test_a_run_that_only_evaluates_trains_on_nothing_and_costs_nothing(owner, sites):  # noqa: F811
    """Neither a large batch nor the lack of noise is a reason against it."""
    model_owner, _ = owner
    limited(sites, privacy_epsilon=2.0, share_scores="own")
    run = model_owner.start(rounds=0, training={**TRAINING, "batch_size": 512})
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert (shown["state"], shown["reason"]) == ("finished", "")
    assert all(site["final"]["samples"] > 0 for site in shown["sites"])
    for node in sites:
        with node.db.reading() as session:
            assert ledger.charges(session) == []


def test_the_limit_is_looked_at_again_before_each_round(owner, sites):  # noqa: F811
    model_owner, _ = owner
    run = model_owner.start(
        model=with_group_norm(model_owner),
        training=TRAINING,
        privacy={"dp_sgd": {"noise_multiplier": 1.0}},
    )
    for node in sites:
        turn(node)  # approved while there was no limit
    limited(sites, privacy_epsilon=1e-3)
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert shown["state"] == "failed"
    assert "privacy-budget-exceeded" in shown["reason"]


def test_rounds_without_noise_are_in_the_ledger_too(owner, sites, cast):  # noqa: F811
    model_owner, _ = owner
    run = model_owner.start(training=TRAINING)
    play(model_owner, sites)
    assert model_owner.show(run)["state"] == "finished"
    found = account(sites[0], cast)
    assert (found["unprotected"], found["epsilon"], found["limit"]) == (1, 0, None)
    assert found["runs"][0]["epsilon"] is None


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"privacy": {"dp_sgd": {"epsilon": 1}}}, "norm"),
        (
            {
                "privacy": {"dp_sgd": {"epsilon": 1}},
                "training": {**TRAINING, "mixup": 0.2},
            },
            "mixup",
        ),
        ({"privacy": {"dp_sgd": {}}}, "epsilon"),
        ({"privacy": CENTRAL, "statistics": {"normalise": True}}, "exact sums"),
        ({"privacy": CENTRAL, "selection": "best_loss"}, "scores"),
        ({"privacy": CENTRAL, "stopping": {"patience": 2}}, "scores"),
    ],
    ids=["BatchNorm", "MixUp", "no measure", "statistics", "selection", "stopping"],
)
def test_an_owner_is_told_before_any_site_is_asked(owner, changes, word):  # noqa: F811
    model_owner, _ = owner
    body = {"model": "chest", "nodes": ["node-a", "node-b"], "rounds": 1, **changes}
    answer = model_owner.user("POST", "/rounds", json={"training": TRAINING, **body})
    assert answer.status_code == 422
    assert word in answer.text


def test_composition_is_tighter_than_the_sum() -> None:
    one = Release(1.0, 0.1, 10)
    merged = ledger.releases(
        [
            ledger.Charge(noise_multiplier=1.0, sample_rate=0.1, steps=10),
            ledger.Charge(noise_multiplier=1.0, sample_rate=0.1, steps=10),
            ledger.Charge(),
        ]
    )
    assert merged == [one._replace(steps=20)]


def test_noise_in_the_masked_sum_hides_each_site(owner, sites):  # noqa: F811
    model_owner, _ = owner
    limited(sites, minimum_sites=3)
    name = with_group_norm(model_owner)
    central = {"clip_norm": 0.5, "noise_multiplier": 2.0}
    settings = {"model": name, "training": TRAINING, "privacy": {"central": central}}
    refused = model_owner.start(**settings)  # its threshold is 2
    play(model_owner, sites)
    assert "PRIMIA_MINIMUM_SITES" in model_owner.show(refused)["reason"]
    run = model_owner.start(**settings, rounds=2, aggregation={"threshold": 3})
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert (shown["state"], shown["reason"]) == ("finished", "")
    assert shown["client_epsilon"] == pytest.approx(epsilon([Release(2.0, 1.0, 2)], 1e-5))
    for report in shown["reports"]:  # the noise in the sum does not cover these
        for site in report["sites"]:
            assert [site[field] for field in ("loss", "accuracy", "received")] == [None] * 3
    for site in shown["sites"]:
        assert site["final"] == {"samples": 0, "loss": None, "accuracy": None}
    with model_owner.ctx.db.reading() as session:
        (event, _) = [each for each in events(session, run, 0, 1000) if each.kind == "opened"]
    assert 0 < event.detail["quantisation_step"]["parameters"] < 1e-6
    assert shown["reports"][0]["quantisation_step"] == event.detail["quantisation_step"]
    page = model_owner.user("GET", f"/rounds/{run}/report.html").text
    table = told(RunReport.model_validate(shown))
    for text in (page, table):
        assert f"ε = {shown['client_epsilon']:.3g}, δ = 1e-05" in text
        assert f"at most {event.detail['quantisation_step']['parameters']:.1g} a parameter" in text


def told(report: RunReport) -> str:
    console = Console(width=240)
    with console.capture() as found:
        console.print(tables(report))
    return found.get()


def test_an_update_out_of_proportion_costs_its_own_place_alone(owner, sites):  # noqa: F811
    model_owner, _ = owner
    run = model_owner.start(training=TRAINING, aggregation={"max_norm": 1e-9})
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert shown["state"] == "failed"
    assert "invalid-update" in shown["reason"]


def test_a_site_that_does_not_consent_shows_no_score(owner, sites):  # noqa: F811
    model_owner, _ = owner
    limited(sites, share_scores="own")
    hidden = sites[0]
    limited([hidden], share_scores="none")
    run = model_owner.start(training=TRAINING)
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert (shown["state"], shown["reason"]) == ("finished", "")
    withheld, *told = shown["reports"][0]["sites"]
    assert (withheld["node"], withheld["stage"]) == ("node-a", "revealed")  # its update counts
    assert [withheld[field] for field in ("loss", "accuracy", "received")] == [None] * 3
    assert all(site["loss"] > 0 for site in told)
    assert shown["sites"][0]["final"] == {"samples": 0, "loss": None, "accuracy": None}
    with hidden.db.reading() as session:
        assert store.find_run(session, run).evaluation["samples"] > 0  # the site's own to see
