import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import matthews_corrcoef

from primia.errors import InvalidInput
from primia.evaluation.metrics import compare, compare_labels, measure

CLASSES = ("bacterial", "normal", "viral")
LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2])
# taken for:     0  0  0  1  1  1  2  0
LOGITS = np.log(
    np.array(
        [
            [0.8, 0.1, 0.1],
            [0.7, 0.2, 0.1],
            [0.5, 0.4, 0.1],
            [0.3, 0.6, 0.1],
            [0.1, 0.8, 0.1],
            [0.2, 0.7, 0.1],
            [0.2, 0.2, 0.6],
            [0.6, 0.2, 0.2],
        ]
    )
)


def test_counts_by_hand() -> None:
    found = measure(LOGITS, LABELS, CLASSES)
    assert found.confusion == ((3, 1, 0), (0, 2, 0), (1, 0, 1))
    assert found.samples == 8
    assert found.accuracy == 6 / 8
    assert [one.images for one in found.classes] == [4, 2, 2]
    assert [one.sensitivity for one in found.classes] == [3 / 4, 1, 1 / 2]
    assert [one.specificity for one in found.classes] == [3 / 4, 5 / 6, 1]
    assert found.balanced_accuracy == pytest.approx((0.75 + 1 + 0.5) / 3)


def test_loss_and_curves_by_hand() -> None:
    found = measure(LOGITS, LABELS, CLASSES)
    right = np.exp(LOGITS)[np.arange(8), LABELS]
    assert found.loss == pytest.approx(-np.log(right).mean())
    # bacterial: 16 pairs of a bacterial and another image; 0.5 and 0.3 stand below the 0.6
    assert found.classes[0].auc == pytest.approx(14 / 16)
    assert found.classes[1].auc == pytest.approx(1.0)
    assert found.classes[2].auc == pytest.approx(1.0)
    assert found.auc == pytest.approx((14 / 16 + 2) / 3)


def test_matthews_correlation_by_hand() -> None:
    two = np.array([[2.0, 0], [2, 0], [0, 2], [2, 0], [0, 2]])  # taken for 0 0 1 0 1
    found = measure(two, np.array([0, 0, 1, 1, 0]), ("ill", "well"))
    tp, tn, fp, fn = 2, 1, 1, 1
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert found.mcc == pytest.approx(expected)


def test_a_perfect_and_a_constant_prediction() -> None:
    perfect = measure(np.eye(3)[LABELS] * 9, LABELS, CLASSES)
    assert (perfect.accuracy, perfect.mcc, perfect.auc) == (1, pytest.approx(1), 1)
    constant = measure(np.tile([1.0, 0, 0], (8, 1)), LABELS, CLASSES)
    assert (constant.accuracy, constant.mcc, constant.auc) == (0.5, 0, 0.5)


def test_what_cannot_be_known_is_none() -> None:
    found = measure(LOGITS[:6], LABELS[:6], CLASSES)
    viral = found.classes[2]
    assert (viral.images, viral.sensitivity, viral.auc) == (0, None, None)
    assert viral.specificity == 1
    assert found.auc is not None
    only = measure(LOGITS[:4], LABELS[:4], CLASSES)
    assert only.classes[0].specificity is None
    assert only.auc is None
    assert json.loads(json.dumps(only.as_dict(), allow_nan=False))["auc"] is None


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (LOGITS[:, :2], LABELS),
        (LOGITS[:7], LABELS),
        (LOGITS[0], LABELS),
        (LOGITS[:0], LABELS[:0]),
        (LOGITS * np.nan, LABELS),
        (LOGITS, LABELS + 1),
        (LOGITS, LABELS - 1),
    ],
)
def test_what_does_not_fit_is_refused(logits: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(InvalidInput):
        measure(logits, labels, CLASSES)


def test_agreement_of_logits() -> None:
    other = LOGITS.copy()
    other[2] = np.log([0.4, 0.5, 0.1])
    other[5, 0] += 0.004
    found = compare(LOGITS, other)
    assert (found.samples, found.same, found.share) == (8, 7, 7 / 8)
    assert found.differing == (2,)
    assert found.largest_difference == pytest.approx(math.log(0.5 / 0.4))
    assert found.mean_difference == pytest.approx((2 * math.log(0.5 / 0.4) + 0.004) / 24)


def test_agreement_of_labels() -> None:
    found = compare_labels(np.array([0, 1, 2, 1]), np.array([0, 2, 2, 0]))
    assert (found.same, found.differing, found.largest_difference) == (2, (1, 3), None)


def test_predictions_of_different_images_do_not_compare() -> None:
    for first, second in [(LOGITS, LOGITS[:7]), (LOGITS[:0], LOGITS[:0]), (LOGITS[0], LOGITS[0])]:
        with pytest.raises(InvalidInput):
            compare(first, second)
    with pytest.raises(InvalidInput):
        compare_labels(LABELS, LABELS[:7])


@given(st.lists(st.integers(0, 2), min_size=2, max_size=30), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_bounds_and_sums(labels: list[int], seed: int) -> None:
    truth = np.array(labels)
    logits = np.random.default_rng(seed).normal(size=(len(labels), 3))
    found = measure(logits, truth, CLASSES)
    assert sum(map(sum, found.confusion)) == len(labels)
    assert sum(one.images for one in found.classes) == len(labels)
    assert 0 <= found.accuracy <= 1
    assert -1 <= found.mcc <= 1
    assert found.loss > 0
    if len(set(labels)) > 1:
        assert found.mcc == pytest.approx(matthews_corrcoef(truth, logits.argmax(axis=1)))
    weighted = sum(one.sensitivity * one.images for one in found.classes if one.sensitivity)
    assert weighted == pytest.approx(found.accuracy * len(labels))
    assert compare(logits, logits).share == 1
