"""Every figure against torchmetrics, scikit-learn or SciPy, on drawn predictions: good and bad,
of few and many classes, and of classes that no image is of or that are never predicted."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import (
    balanced_accuracy_score,
    brier_score_loss,
    cohen_kappa_score,
    log_loss,
    matthews_corrcoef,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from primia.evaluation.comparison import kappa
from primia.evaluation.counts import BINS, RELIABILITY_BINS, count
from primia.evaluation.figures import Figures
from primia.evaluation.measuring import figures
from primia.evaluation.metrics import Metrics, measure
from primia.learning import vision


@dataclass(frozen=True)
class Case:
    """``skill``: how far logits lean towards the truth; ``absent``: a class without images;
    ``unpredicted``: one that is never the likeliest."""

    seed: int
    images: int
    classes: int
    skill: float
    absent: int | None = None
    unpredicted: int | None = None

    def drawn(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        draws = np.random.default_rng(self.seed)
        known = [k for k in range(self.classes) if k != self.absent]
        labels = draws.choice(known, self.images)
        labels[: len(known)] = known
        logits = 2 * draws.normal(size=(self.images, self.classes))
        logits += self.skill * np.eye(self.classes)[labels]
        if self.unpredicted is not None:
            logits[:, self.unpredicted] = logits.min(axis=1) - 0.5
        return logits, labels

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"class {k}" for k in range(self.classes))


CASES = [
    Case(1, 400, 2, 2.0),
    Case(2, 400, 3, 1.0),
    Case(3, 37, 3, 0.0),
    Case(4, 900, 7, -1.0),
    Case(5, 300, 3, 8.0),
    Case(6, 250, 4, 1.5, absent=2),
    Case(7, 250, 4, 1.5, unpredicted=0),
    Case(8, 60, 3, 1.0, absent=1, unpredicted=1),
    Case(9, 80, 2, 1.0, absent=0),
    Case(10, 80, 2, 1.0, unpredicted=1),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"seed {case.seed}")


@pytest.fixture(scope="module")
def torchmetrics() -> ModuleType:
    return vision.torchmetrics_functional()


def _chances(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return torch.from_numpy(logits).softmax(dim=1).numpy()


def _both(case: Case) -> tuple[Metrics, Figures]:
    """From the images, and from the counts that a site sends."""
    logits, labels = case.drawn()
    counted = count(logits, labels)
    assert counted is not None
    return measure(logits, labels, case.names), figures(counted, case.names)


def _value(rate: object) -> float | None:
    return getattr(rate, "value", rate)  # type: ignore[return-value]


@each_case
def test_calibration_error(case: Case, torchmetrics: ModuleType) -> None:
    logits, labels = case.drawn()
    expected = torchmetrics.multiclass_calibration_error(
        torch.from_numpy(_chances(logits)), torch.from_numpy(labels), case.classes,
        n_bins=RELIABILITY_BINS, norm="l1",
    )  # fmt: skip
    found = _both(case)[1]
    assert found.calibration_error == pytest.approx(float(expected), abs=1e-6)
    shares = np.array([one.images for one in found.reliability]) / case.images
    gaps = [abs(one.accuracy - one.confidence) for one in found.reliability]
    assert shares @ gaps == pytest.approx(float(expected), abs=1e-6)


@each_case
def test_scores_of_the_probabilities(case: Case) -> None:
    logits, labels = case.drawn()
    chances, numbers = _chances(logits), range(case.classes)
    loss = log_loss(labels, chances, labels=list(numbers))
    truth = np.eye(case.classes)[labels]
    found, counted = _both(case)
    assert found.loss == pytest.approx(loss)
    assert counted.loss == pytest.approx(loss)
    one_by_one = sum(brier_score_loss(truth[:, k], chances[:, k], pos_label=1) for k in numbers)
    assert counted.brier == pytest.approx(one_by_one)
    if case.classes > 2:
        whole = brier_score_loss(labels, chances, labels=list(numbers), scale_by_half=False)
        assert counted.brier == pytest.approx(whole)


@each_case
def test_accuracy_sensitivity_and_specificity(case: Case, torchmetrics: ModuleType) -> None:
    logits, labels = case.drawn()
    predicted = logits.argmax(axis=1)
    recall = recall_score(labels, predicted, labels=range(case.classes), average=None,
                          zero_division=np.nan)  # fmt: skip
    specificity = torchmetrics.multiclass_specificity(
        torch.from_numpy(predicted), torch.from_numpy(labels), case.classes, average=None
    ).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that classes are predicted of which there are no images
        balanced = balanced_accuracy_score(labels, predicted)
    for found in _both(case):
        assert _value(found.accuracy) == pytest.approx((predicted == labels).mean())
        assert found.balanced_accuracy == pytest.approx(balanced)
        for number, one in enumerate(found.classes):
            others = case.images - one.images
            assert one.images == (labels == number).sum()
            if one.images:
                assert _value(one.sensitivity) == pytest.approx(recall[number])
            else:
                assert (one.sensitivity, recall[number]) == (
                    None,
                    pytest.approx(np.nan, nan_ok=True),
                )
            if others:
                assert _value(one.specificity) == pytest.approx(specificity[number])
            else:
                assert one.specificity is None


@each_case
def test_matthews_correlation(case: Case, torchmetrics: ModuleType) -> None:
    logits, labels = case.drawn()
    predicted = logits.argmax(axis=1)
    one_sided = len(set(labels)) == 1 or len(set(predicted)) == 1
    for found in _both(case):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a single class
            assert found.mcc == pytest.approx(matthews_corrcoef(labels, predicted))
        assert (found.mcc == 0) == one_sided
        if not one_sided:  # torchmetrics has values of its own for those
            known = torchmetrics.multiclass_matthews_corrcoef(
                torch.from_numpy(predicted), torch.from_numpy(labels), case.classes
            )
            assert found.mcc == pytest.approx(float(known), abs=1e-6)


@each_case
def test_areas_under_the_curve(case: Case, torchmetrics: ModuleType) -> None:
    """From the counts they are those of probabilities of which only the bin is known."""
    logits, labels = case.drawn()
    chances = _chances(logits)
    found, counted = _both(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes without images
        known = torchmetrics.multiclass_auroc(
            torch.from_numpy(chances), torch.from_numpy(labels), case.classes, average=None
        ).numpy()
    binned = np.minimum(np.floor(chances * BINS), BINS - 1)
    areas = []
    for number, (exact, coarse) in enumerate(zip(found.classes, counted.classes, strict=True)):
        belongs = labels == number
        if belongs.all() or not belongs.any():
            assert (exact.auc, coarse.auc, coarse.roc) == (None, None, ())
            continue
        assert exact.auc == pytest.approx(known[number], abs=1e-6)
        area = roc_auc_score(belongs, binned[:, number])
        areas.append((exact.auc, area))
        assert _value(coarse.auc) == pytest.approx(area)
        points = np.column_stack(roc_curve(belongs, binned[:, number], drop_intermediate=False)[:2])
        assert np.allclose(coarse.roc, points)
    means = np.mean(areas, axis=0) if areas else (None, None)
    assert (found.auc, counted.auc) == (pytest.approx(means[0]), pytest.approx(means[1]))


@each_case
def test_dice_and_iou_of_masks(case: Case, torchmetrics: ModuleType) -> None:
    """The images of a case taken for pixels."""
    from torchmetrics.functional.segmentation import dice_score  # once torchvision can be imported

    logits, labels = case.drawn()
    predicted, truth = torch.from_numpy(logits.argmax(axis=1)), torch.from_numpy(labels)
    counted = count(logits, labels)
    assert counted is not None
    found = figures(counted, case.names, masks=True)
    iou = torchmetrics.multiclass_jaccard_index(predicted, truth, case.classes, average=None)
    dice = dice_score(
        predicted[None], truth[None], case.classes, average="none", input_format="index",
        aggregation_level="global",
    ).flatten()  # fmt: skip
    nowhere = case.absent is not None and case.absent == case.unpredicted
    there = [k for k in range(case.classes) if not (nowhere and k == case.absent)]
    for number, one in enumerate(found.classes):
        if number in there:
            assert one.dice == pytest.approx(float(dice[number]), abs=1e-6)
            assert one.iou == pytest.approx(float(iou[number]), abs=1e-6)
        else:
            assert (one.dice, one.iou) == (None, None)
    means = [float(values[[k for k in there if k]].mean()) for values in (dice, iou)]
    assert [found.dice, found.iou] == pytest.approx(means, abs=1e-6)


@each_case
def test_intervals_of_shares_are_wilsons(case: Case) -> None:
    found = _both(case)[1]
    shares = [(found.accuracy, case.images)]
    shares += [(one.sensitivity, one.images) for one in found.classes if one.sensitivity]
    shares += [(o.specificity, case.images - o.images) for o in found.classes if o.specificity]
    for rate, of in shares:
        known = binomtest(round(rate.value * of), of).proportion_ci(method="wilson")
        assert rate.interval == pytest.approx((known.low, known.high))


@pytest.mark.parametrize(
    ("ratio", "positives", "negatives"), [(4, 60, 90), (1.5, 40, 40), (9, 20, 200)]
)
def test_intervals_of_areas_are_as_wide_as_areas_scatter(
    ratio: float, positives: int, negatives: int
) -> None:
    """Hanley and McNeil's variance is exact for scores of exponential distributions."""
    draws = np.random.default_rng(0)
    high = draws.exponential(ratio, (3000, positives, 1))
    low = draws.exponential(1, (3000, 1, negatives))
    scatter = (high > low).mean(axis=(1, 2)).std()
    area = ratio / (1 + ratio)
    hits = round(area * positives)
    # one negative bin between the positives above and below it: the area is hits / positives
    top, bottom = np.array([0.0, 6.0]), np.array([0.0, -6.0])
    ours = [top] * hits + [bottom] * (positives - hits)
    logits = np.array(ours + [np.zeros(2)] * negatives)
    counted = count(logits, np.array([1] * positives + [0] * negatives))
    assert counted is not None
    found = figures(counted, ("ill", "well")).classes[1].auc
    assert found is not None
    assert found.value == pytest.approx(hits / positives)
    width = (found.value - found.interval[0]) / 1.959964
    assert width == pytest.approx(scatter, rel=0.06)


@each_case
def test_kappa(case: Case) -> None:
    logits, labels = case.drawn()
    predicted = logits.argmax(axis=1)
    assert kappa(predicted, labels) == pytest.approx(cohen_kappa_score(predicted, labels))
