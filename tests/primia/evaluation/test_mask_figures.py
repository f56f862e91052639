"""Dice and IoU from counts of pixels that add up over sites, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score

from primia.evaluation import sums
from primia.evaluation.counts import count, total
from primia.evaluation.measuring import figures

LABELS = ("background", "left", "right")


def pixels(seed: int, number: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    """Logits (number, 3) that are right more often than not, and class numbers."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, number, p=(0.7, 0.2, 0.1))
    return (rng.normal(size=(number, 3)) + 1.5 * np.eye(3)[truth]).astype(np.float32), truth


def test_sums_over_sites_give_the_dice_and_iou_of_all_pixels():
    sites = [pixels(seed) for seed in range(3)]
    parts = [count(*site) for site in sites]
    vectors = [sums.of_counts(part, 3) for part in parts]
    summed = sums.counts(np.sum(vectors, axis=0, dtype=np.uint64), 3)
    assert summed is not None
    known = total(part for part in parts if part)
    assert known is not None
    assert summed.confusion == known.confusion
    found = figures(summed, LABELS, masks=True)
    predicted = np.concatenate([logits.argmax(axis=1) for logits, _ in sites])
    truth = np.concatenate([labels for _, labels in sites])
    dice = f1_score(truth, predicted, average=None)
    iou = jaccard_score(truth, predicted, average=None)
    assert [one.dice for one in found.classes] == pytest.approx(dice)
    assert [one.iou for one in found.classes] == pytest.approx(iou)
    assert found.dice == pytest.approx(dice[1:].mean())
    assert found.iou == pytest.approx(iou[1:].mean())


def test_a_class_that_is_nowhere_has_no_dice_and_is_not_in_the_mean():
    truth = np.array([0, 0, 1, 1])
    found = count(np.eye(3, dtype=np.float32)[[0, 1, 1, 1]] * 9, truth)
    assert found is not None
    measured = figures(found, LABELS, masks=True)
    assert [one.dice for one in measured.classes] == [
        pytest.approx(2 / 3),
        pytest.approx(0.8),
        None,
    ]
    assert measured.dice == pytest.approx(0.8)
    assert measured.iou == pytest.approx(2 / 3)


def test_figures_of_images_have_no_dice():
    found = count(*pixels(1))
    assert found is not None
    assert figures(found, LABELS).dice is None


def test_counts_of_more_pixels_than_two_to_the_31_add_up_exactly():
    found = count(*pixels(2))
    assert found is not None
    many = sums.of_counts(found, 3).astype(np.uint64) * np.uint64(2**20)
    read = sums.counts(many, 3)
    assert read is not None
    assert read.samples == 5000 * 2**20
