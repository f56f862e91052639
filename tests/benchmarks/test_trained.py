"""What the case study keeps of its trainings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bed import trained
from primia.learning.spec import ModelSpec
from primia.learning.synthetic import draw_dataset
from primia.messages.rounds import TrainingSettings
from primia.simulation.comparing import trials
from primia.simulation.modes import Plan
from primia.simulation.sites import Wanted, listed, load


def nothing(_name: str, _done: int, _of: int) -> None:
    pass


def test_a_training_is_done_once_and_again_with_other_settings(tmp_path: Path, monkeypatch):
    draw_dataset(tmp_path / "drawn", 9, 9, 1, 32)
    spec = ModelSpec.parse(
        {
            "architecture": "small_cnn",
            "classes": listed(tmp_path / "drawn").classes,
            "image_size": 32,
        }
    )
    setting = load(tmp_path / "drawn", spec, Wanted(sites=1, validation=0))
    plan = Plan(1, TrainingSettings(image_size=32, batch_size=4, validation_fraction=0))
    (trial,) = trials(setting, plan, ["pooled"])
    kept = tmp_path / "kept"
    first = trained.outcome(kept, setting, trial, nothing)
    with monkeypatch.context() as patch:
        patch.setattr(trained.comparing, "outcome", pytest.fail)
        again = trained.outcome(kept, setting, trial, nothing)
    assert (first.name, first.images, first.figures) == (again.name, again.images, again.figures)
    np.testing.assert_array_equal(first.predicted, again.predicted)
    other = replace(trial, plan=replace(plan, rounds=2))
    trained.outcome(kept, setting, other, nothing)
    assert len(list(kept.iterdir())) == 2
