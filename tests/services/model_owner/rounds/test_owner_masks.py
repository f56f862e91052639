"""Runs of a model for segmentation: what is refused before any site is asked."""

from __future__ import annotations

import pytest

from primia.learning.spec import ModelSpec
from tests.services.model_owner.federation import NODES, Federation
from tests.services.model_owner.rounds.test_owner_bad_answers import assert_problem

SPEC = ModelSpec(architecture="unet", classes=("background", "lung"), image_size=32, width=8)
REFUSED = [
    ({"training": {"image_size": 32, "mixup": 0.3}}, "mixup blends"),
    ({"training": {"image_size": 32, "class_weights": [1, 2]}}, "class_weights are of images"),
    ({"statistics": {"class_weights": True}}, "statistics count images by class"),
    ({"statistics": {"normalise": True}}, "statistics count images by class"),
    ({"privacy": {"dp_sgd": {"noise_multiplier": 1.0}}}, "differential privacy"),
    ({"privacy": {"central": {"clip_norm": 1.0, "noise_multiplier": 1.0}}}, "differential privacy"),
]


@pytest.fixture
def lungs(federation: Federation) -> Federation:
    body = {"name": "lungs", **SPEC.model_dump(mode="json")}
    assert federation.user("POST", "/models", json=body).status_code == 202
    federation.work()
    return federation


def test_what_segmentation_does_not_have_is_refused_with_the_reason(lungs: Federation):
    for changes, words in REFUSED:
        body = {"model": "lungs", "nodes": list(NODES), "rounds": 1,
                "training": {"image_size": 32}, **changes}  # fmt: skip
        assert_problem(lungs.user("POST", "/rounds", json=body), 422, "invalid-input", words)
    assert lungs.user("GET", "/rounds").json()["runs"] == []


def test_sites_are_told_the_width_and_a_size_that_halves_four_times(lungs: Federation):
    run = lungs.start(model="lungs", training={"image_size": 48})
    assert lungs.show(run)["proposal"]["model"]["width"] == 8
    body = {"model": "lungs", "nodes": list(NODES), "rounds": 1, "training": {"image_size": 40}}
    answer = lungs.user("POST", "/rounds", json=body)
    assert_problem(answer, 422, "invalid-input", "multiples of 16")
