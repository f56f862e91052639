"""Review and means: pure rules."""

from __future__ import annotations

import itertools

import pytest

from services.model_owner.rounds.domain import Wait
from services.model_owner.rounds.measures import Measure, weighted
from services.model_owner.rounds.review import (
    Answer,
    Begin,
    Fail,
    label_difference,
    settle_review,
)

CLASSES = ("normal", "pneumonia")


def review(*states: str, needed: int = 2, expired: bool = False):
    answers = [
        Answer(f"site-{i}", state, CLASSES if state == "accepted" else (), "busy")
        for i, state in enumerate(states)
    ]
    return settle_review(answers, "model chest version 1", CLASSES, needed, expired=expired)


def test_every_mix_of_three_answers():
    for states in itertools.product(("invited", "accepted", "refused", "silent"), repeat=3):
        accepted, invited = states.count("accepted"), states.count("invited")
        for needed, expired in itertools.product((1, 2, 3), (False, True)):
            verdict = review(*states, needed=needed, expired=expired)
            if invited and not expired and accepted + invited >= needed:
                assert verdict == Wait()
            elif accepted >= needed:
                assert isinstance(verdict, Begin)
                assert len(verdict.silent) == (invited if expired else 0)
            else:
                assert isinstance(verdict, Fail)
                assert f"Of the {needed} nodes needed {accepted} accepted" in verdict.reason


def test_the_failure_names_who_refused_and_who_was_silent():
    verdict = review("accepted", "refused", "invited", needed=2, expired=True)
    assert isinstance(verdict, Fail)
    assert "site-1 refused (busy)" in verdict.reason
    assert "site-2 did not answer in time" in verdict.reason


def test_labels_that_differ_fail_the_run_at_once_and_name_the_site():
    answers = [Answer("site-0", "invited"), Answer("site-1", "accepted", ("normal", "other"))]
    verdict = settle_review(answers, "model chest version 1", CLASSES, 1, expired=False)
    assert verdict == Fail(
        "The labels of site-1 differ from those of model chest version 1: it lacks pneumonia and "
        "the model does not know other."
    )


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (("normal", "pneumonia"), None),
        (("pneumonia", "normal"), None),
        (("normal",), "it lacks pneumonia"),
        (("normal", "pneumonia", "mass"), "the model does not know mass"),
        (("Normal", "pneumonia"), "it lacks normal and the model does not know Normal"),
    ],
)
def test_label_difference(found, said):
    assert label_difference(found, CLASSES) == said


def test_means_are_weighted_by_samples():
    found = weighted([Measure(1, 1.0, 0.0), Measure(3, 3.0, 1.0)])
    assert found == Measure(4, 2.5, 0.75)


def test_sites_without_samples_or_scores_do_not_count():
    found = weighted([Measure(0, 9.0, 0.9), Measure(2, None, 0.5), Measure(2, 1.0, None)])
    assert found == Measure(4, 1.0, 0.5)
    assert weighted([]) == Measure(0, None, None)
