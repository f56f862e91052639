"""Runs of a U-Net with the real owner: every way of averaging, stopping and choosing a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from primia.learning import masks
from primia.learning.synthetic import draw_masks
from primia.messages.runs import RunDocument
from services.data_node.datasets import store as datasets
from tests.services.data_node.training.test_training_with_owner import (  # noqa: F401  # fixtures
    owner,
    play,
    sites,
)

SIDE = 32
MODEL = {
    "name": "lungs",
    "architecture": "unet",
    "classes": ["background", "lung"],
    "image_size": SIDE,
    "width": 8,
    "norm": "group",
}
TRAINING = {
    "image_size": SIDE,
    "epochs": 1,
    "batch_size": 4,
    "learning_rate": 3e-3,
    "validation_fraction": 0.25,
    "test_fraction": 0.25,
}
NEVER = {"measure": "accuracy", "patience": 1, "min_change": 1}  # a gain of 1 is none's
WAYS = [
    {"aggregation": {"secure": False}, "selection": "best_accuracy"},
    {"server": {"kind": "fedadam", "learning_rate": 1e-3}, "selection": "best_loss"},
    {"aggregation": {"secure": False}, "training": {"local_stopping": NEVER}},
    {"stopping": NEVER},
]


@pytest.fixture
def lungs(owner, sites, images_root: Path):  # noqa: F811
    """The owner with a U-Net; two sites with masks, which show their own figures."""
    model_owner, _ = owner
    assert model_owner.user("POST", "/models", json=MODEL).status_code == 202
    model_owner.work()
    for number, node in enumerate(sites[:2]):
        update = {"statistics_minimum": 1, "share_scores": "own"}
        node.settings = node.settings.model_copy(update=update)
        root = images_root / f"lungs-{number}"
        draw_masks(root, 4, 4, number, SIDE)
        with node.db.session() as session:
            row = datasets.register(
                session, dataset_id="7" * 32, name="lungs", kind="masks", place=str(root),
                patient_pattern=None, bad_files="strict", now=node.clock.now(),
            )  # fmt: skip
            manifest = masks.inspect(masks.scan_folder(root)).manifest
            assert manifest is not None
            datasets.accept(session, row, manifest, node.clock.now())
    return model_owner, sites[:2]


@pytest.mark.parametrize("way", WAYS, ids=["plain", "fedadam", "local-stopping", "run-stopping"])
def test_masks_are_trained_evaluated_and_tested_over_the_services(lungs, way):
    model_owner, nodes = lungs
    settings = {**way, "training": {**TRAINING, **way.get("training", {})}}
    names = [node.identity.name for node in nodes]
    run = model_owner.start(model="lungs", nodes=names, rounds=3, compare=[1], **settings)
    play(model_owner, nodes)
    answer = model_owner.user("GET", f"/rounds/{run}/report")
    report = RunDocument.model_validate_json(answer.content)
    shown = report.run
    assert (shown.state, shown.reason) == ("finished", "")
    rounds = [each for each in shown.reports if each.phase == "done"]
    stops = "stopping" in str(way)
    assert len(rounds) in ((1, 2) if stops else (3,))
    measured = [each.received for each in rounds]
    assert all(each.accuracy is not None and 0 <= each.accuracy <= 1 for each in measured)
    models = {each.model: each for each in report.models}
    for part in ("validation", "test"):
        whole = getattr(models["last"].overall, part)
        by_site = [getattr(models["last"].sites[name], part) for name in names]
        assert whole.samples == sum(each.samples for each in by_site) > 0
        np.testing.assert_array_equal(
            np.asarray(whole.confusion), sum(np.asarray(each.confusion) for each in by_site)
        )
        (background, right), (wrong, lung) = whole.confusion
        assert background > 0
        assert whole.dice == pytest.approx(2 * lung / (2 * lung + wrong + right))
    assert (
        models[report.chosen].overall.validation.dice >= models["version-1"].overall.validation.dice
    )
    page = model_owner.user("GET", f"/rounds/{run}/report.html").text
    assert "mean Dice of each model on each site&#x27;s images" in page
    assert "accuracy of each model" not in page
