"""Losses, accuracies and counts of predictions, summed under masks with the real owner."""

from __future__ import annotations

import pytest

from primia.errors import UnexpectedMessage
from primia.messages.rounds import Decision, Evaluate, Train
from primia.messages.runs import RunDocument
from services.data_node.training import figures, store
from services.data_node.training.domain import adding
from tests.services.data_node.training.conftest import fetch, turn
from tests.services.data_node.training.test_training_with_owner import (  # noqa: F401  # fixtures
    owner,
    play,
    sites,
)
from tests.services.model_owner.conftest import MovableClock

TRAINING = {"image_size": 16, "batches": 2, "batch_size": 4}
NOTHING = {"samples": 0, "loss": None, "accuracy": None}


def configure(nodes, **settings) -> None:
    for node in nodes:
        node.settings = node.settings.model_copy(update=settings)


def own_report(node, run: str, number: int = 1) -> dict:
    """What the site itself knows of its round."""
    with node.db.reading() as session:
        return store.find_round(session, run, number).report


def mean(scores: list[dict], what: str) -> float:
    images = sum(each["samples"] for each in scores)
    return sum(each["samples"] * each[what] for each in scores) / images


def check_round(shown: dict, nodes, number: int = 1) -> None:
    """The round's figures are those of these sites together."""
    reports = [own_report(node, shown["id"], number) for node in nodes]
    (round_,) = [each for each in shown["reports"] if each["number"] == number]
    for name, found in (("training", reports), ("received", [r["received"] for r in reports])):
        assert round_[name]["samples"] == sum(each["samples"] for each in found)
        assert round_[name]["loss"] == pytest.approx(mean(found, "loss"), abs=1e-5)
        assert round_[name]["accuracy"] == pytest.approx(mean(found, "accuracy"))


def check_hidden(shown: dict, names) -> None:
    for each in (*shown["reports"], *shown["evaluations"]):
        for site in each["sites"]:
            if site["node"] in names:
                assert [site[field] for field in ("loss", "accuracy", "received")] == [None] * 3
    for site in shown["sites"]:
        if site["node"] in names:
            assert site["final"] in (None, NOTHING)


def document(model_owner, run: str) -> RunDocument:
    return RunDocument.model_validate(model_owner.user("GET", f"/rounds/{run}/report").json())


def test_the_owner_sees_the_federations_figures_and_no_sites_own(owner, sites):  # noqa: F811
    model_owner, _ = owner
    configure(sites, statistics_minimum=1)
    training = {**TRAINING, "test_fraction": 0.3}
    settings = {"rounds": 2, "training": training, "selection": "best_loss", "compare": [1]}
    run = model_owner.start(**settings)
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert (shown["state"], shown["reason"]) == ("finished", "")
    assert [site["summed"] for site in shown["sites"]] == [True] * 3
    check_hidden(shown, model_owner.nodes)
    for number in (1, 2):
        check_round(shown, sites, number)
    assert shown["reports"][0]["result"] == shown["reports"][1]["received"]
    (summing,) = shown["evaluations"]
    assert (summing["purpose"], summing["phase"]) == ("evaluate", "done")
    assert summing["number"] == 3
    hidden = document(model_owner, run)
    page = model_owner.user("GET", f"/rounds/{run}/report.html").text
    assert "Figures summed, not shown" in page
    configure(sites, share_scores="own")  # the same run, in the open
    again = model_owner.start(**{**settings, "version": 1})
    play(model_owner, sites)
    assert model_owner.show(again)["evaluations"] == []
    open_ = document(model_owner, again)
    assert hidden.chosen == open_.chosen
    assert hidden.run.final is not None
    assert open_.run.final is not None
    assert hidden.run.final.loss == pytest.approx(open_.run.final.loss, abs=1e-5)
    assert hidden.run.final.accuracy == pytest.approx(open_.run.final.accuracy)
    assert [each.model for each in hidden.models] == [each.model for each in open_.models]
    for left, right in zip(hidden.models, open_.models, strict=True):
        assert all(part.validation is None and part.test is None for part in left.sites.values())
        for part in ("validation", "test"):
            summed, added = getattr(left.overall, part), getattr(right.overall, part)
            assert (summed.confusion, summed.auc) == (added.confusion, added.auc)
            assert summed.loss == pytest.approx(added.loss, abs=1e-5)
            assert summed.brier == pytest.approx(added.brier, abs=1e-5)


def test_sites_that_would_be_alone_in_a_sum_add_nothing_to_it(owner, sites):  # noqa: F811
    """Two may remain; one of them may be the one that shows its own."""
    model_owner, _ = owner
    configure(sites[:1], share_scores="own")
    run = model_owner.start(training=TRAINING)
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert (shown["state"], shown["reason"]) == ("finished", "")
    check_hidden(shown, ("node-b", "node-c"))
    own = own_report(sites[0], run)
    assert shown["reports"][0]["sites"][0]["loss"] == own["loss"]
    assert shown["reports"][0]["training"]["loss"] == own["loss"]
    assert shown["reports"][0]["received"] == own["received"]
    assert shown["final"] == shown["sites"][0]["final"]


def test_sites_that_show_their_own_are_added_to_the_sum_of_the_others(owner, sites):  # noqa: F811
    model_owner, _ = owner
    configure(sites[:1], share_scores="own")
    run = model_owner.start(training=TRAINING, aggregation={"threshold": 3})
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert (shown["state"], shown["reason"]) == ("finished", "")
    check_hidden(shown, ("node-b", "node-c"))
    assert shown["reports"][0]["sites"][0]["loss"] > 0
    check_round(shown, sites)
    evaluations = []
    for node in sites:
        with node.db.reading() as session:
            evaluations.append(store.find_run(session, run).evaluation)
    assert shown["final"]["samples"] == sum(each["samples"] for each in evaluations)
    assert shown["final"]["loss"] == pytest.approx(mean(evaluations, "loss"), abs=1e-5)


def test_a_lost_site_costs_its_own_figures_alone(owner, sites):  # noqa: F811
    model_owner, _ = owner
    model_owner.ctx.clock = MovableClock()
    run = model_owner.start(training=TRAINING)
    for _ in range(30):
        items = [fetch(node) for node in sites]
        if all(item is not None and item.kind == "evaluate" for item in items):
            break
        play_once(model_owner, sites)
    for _ in range(3):
        play_once(model_owner, sites[:2])
    model_owner.forward()  # node-c has evaluated nothing
    play(model_owner, sites[:2])
    shown = model_owner.show(run)
    assert (shown["state"], shown["reason"]) == ("finished", "")
    assert shown["evaluations"][0]["sites"][2]["dropped"] == "It did not answer in time."
    assert shown["sites"][2]["reason"] == "It did not answer in time."
    assert shown["final"]["samples"] == 4  # of six validation images, two a site


def play_once(model_owner, nodes) -> None:
    model_owner.work()
    for node in nodes:
        turn(node)
    model_owner.work()


def test_an_evaluation_that_too_few_finish_is_repeated_and_then_left_out(owner, sites):  # noqa: F811
    model_owner, _ = owner
    model_owner.ctx.clock = MovableClock()
    run = model_owner.start(training=TRAINING, repeats=1)
    for _ in range(30):
        if model_owner.show(run)["state"] == "evaluating":
            break
        play_once(model_owner, sites)
    play_once(model_owner, sites[:1])
    model_owner.forward()
    shown = model_owner.show(run)
    assert [each["phase"] for each in shown["evaluations"]] == ["abandoned", "training"]
    play_once(model_owner, sites)  # node-a evaluates again: nothing was opened
    assert [s["stage"] for s in model_owner.show(run)["evaluations"][1]["sites"]] == ["trained"] * 3
    model_owner.forward()
    shown = model_owner.show(run)
    assert (shown["state"], shown["reason"], shown["final_version"]) == ("finished", "", 2)
    assert shown["final"] == NOTHING
    play(model_owner, sites)


def test_private_training_adds_no_loss_of_its_own(owner, sites):  # noqa: F811
    model_owner, _ = owner
    body = {"architecture": "small_cnn", "classes": ["normal", "pneumonia"], "image_size": 16}
    model_owner.user("POST", "/models", json={**body, "name": "private", "norm": "group"})
    model_owner.work()
    settings = {"model": "private", "training": {"image_size": 16, "epochs": 1, "batch_size": 4}}
    run = model_owner.start(**settings, privacy={"dp_sgd": {"noise_multiplier": 1.0}})
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert (shown["state"], shown["reason"]) == ("finished", "")
    assert shown["reports"][0]["training"]["loss"] is None
    assert shown["reports"][0]["received"]["loss"] > 0
    central = {"central": {"clip_norm": 0.5, "noise_multiplier": 2.0}}
    run = model_owner.start(**settings, privacy=central, aggregation={"threshold": 3})
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert shown["state"] == "finished"
    assert not any(site["summed"] for site in shown["sites"])
    assert (shown["evaluations"], shown["final"]) == ([], NOTHING)


def test_an_evaluation_that_may_have_been_opened_is_not_repeated(owner, sites):  # noqa: F811
    """Nor is another one: two sums over different models or sites would tell their difference."""
    model_owner, _ = owner
    run = model_owner.start(training=TRAINING)
    for _ in range(30):
        if model_owner.show(run)["state"] == "evaluating":
            break
        play_once(model_owner, sites)
    with sites[0].db.session() as session:
        store.begin_evaluating(session, run, 1000, sites[0].clock.now()).phase = "revealed"
        store.find_run(session, run).evaluation = NOTHING
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert shown["state"] == "finished"
    assert "has evaluated" in shown["evaluations"][0]["sites"][0]["dropped"]
    with sites[1].db.reading() as session:
        (item,) = store.evaluations(session, run)
    other = item.model_copy(update={"round": item.round + 1, "weights_digest": "0" * 64})
    from services.data_node.training import computing

    with sites[1].db.reading() as session:
        row = store.find_run(session, run)
        with pytest.raises(UnexpectedMessage, match="has evaluated"):
            computing._check_first(session, row, other)


# The rules by themselves

NODES = ("a", "b", "c", "d", "e")


@pytest.mark.parametrize(
    ("asked", "threshold", "found"),
    [
        ({}, 3, ""),
        (dict.fromkeys("abcde", 2), 3, "abcde"),
        (dict.fromkeys("abcd", 2), 3, "abcd"),  # of any three, two or more
        (dict.fromkeys("abc", 2), 3, ""),  # of any three, perhaps one
        (dict.fromkeys("abc", 2), 4, "abc"),
        ({**dict.fromkeys("abcd", 2), "e": 4}, 3, "abcd"),  # e finds too few: it adds nothing
        ({"a": 3, "b": 3, "c": 2, "d": 2, "e": 4}, 3, ""),  # without e, a and b; without these, all
        ({"x": 2, **dict.fromkeys("abcde", 3)}, 3, "abcde"),
    ],
)
def test_a_site_adds_where_enough_others_do_whoever_drops_out(asked, threshold, found):
    assert adding(asked, NODES, threshold) == frozenset(found)


def test_a_site_refuses_to_be_counted_on_for_more_than_it_offered():
    item = Train(run="0" * 32, round=1, weights_digest="0" * 64, weights_bytes=1)
    offer = Decision(accepted=True, summed=3)
    figures.check_agreed(offer, item.model_copy(update={"summed": {"a": 3}}), "a")
    figures.check_agreed(offer, item, "a")  # then it adds nothing
    for summed, decision in (({"a": 2}, offer), ({"a": 3}, Decision(accepted=True))):
        with pytest.raises(UnexpectedMessage, match="not as a offered"):
            figures.check_agreed(decision, item.model_copy(update={"summed": summed}), "a")
    shared = item.model_dump(exclude={"kind", "done", "uncounted"})
    evaluate = Evaluate(**shared, counted={"a": 3})
    with pytest.raises(UnexpectedMessage, match="counts of predictions"):
        figures.check_agreed(offer, evaluate, "a")
