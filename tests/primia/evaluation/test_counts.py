import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.metrics import brier_score_loss, matthews_corrcoef, roc_auc_score

from primia.evaluation.counts import BINS, MAX_CLASSES, Counts, count, total
from primia.evaluation.measuring import figures
from primia.prg import Seed, Stream

NAMES = ("bacterial", "normal", "viral")


def drawn(images: int, classes: int = 3, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Logits that tell the classes apart, though not always."""
    stream = Stream(Seed(seed.to_bytes(16, "little")), "counts test")
    noise = stream.words((images, classes), bits=16) / 2**14 - 2
    labels = (stream.words(images, bits=16) % classes).astype(np.int64)
    return noise + 1.5 * np.eye(classes)[labels], labels


def counted(*args: int) -> Counts:
    found = count(*drawn(*args))
    assert found is not None
    return found


def test_the_figures_are_those_of_the_images() -> None:
    logits, labels = drawn(500)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    predicted = logits.argmax(axis=1)
    found = figures(counted(500), NAMES)
    assert found.samples == 500
    assert found.accuracy.value == (predicted == labels).mean()
    assert found.mcc == pytest.approx(matthews_corrcoef(labels, predicted))
    assert found.loss == pytest.approx(-np.log(chances[np.arange(500), labels]).mean())
    assert found.brier == pytest.approx(
        sum(brier_score_loss(labels == k, chances[:, k]) for k in range(3))
    )
    for number, one in enumerate(found.classes):
        belongs = labels == number
        assert one.sensitivity is not None
        assert one.specificity is not None
        assert one.auc is not None
        assert one.sensitivity.value == (predicted[belongs] == number).mean()
        assert one.specificity.value == (predicted[~belongs] != number).mean()
        exact = roc_auc_score(belongs, chances[:, number])
        assert one.auc.value == pytest.approx(exact, abs=1 / BINS)
        assert one.auc.interval[0] < exact < one.auc.interval[1]
        assert one.roc[0] == (0, 0)
        assert one.roc[-1] == (1, 1)
        assert np.trapezoid(*np.array(one.roc).T[::-1]) == pytest.approx(one.auc.value)


def test_counts_of_sites_add_up_to_the_counts_of_all() -> None:
    logits, labels = drawn(300)
    parts = [count(logits[rows], labels[rows]) for rows in np.split(np.arange(300), [50, 170])]
    summed = total(part for part in parts if part is not None)
    whole = count(logits, labels)
    assert summed is not None
    assert whole is not None
    assert summed.model_dump(exclude={"loss", "brier", "confidence"}) == whole.model_dump(
        exclude={"loss", "brier", "confidence"}
    )
    assert summed.loss == pytest.approx(whole.loss)
    assert total([]) is None


def test_calibration_of_certain_and_wrong_predictions() -> None:
    logits = np.tile([10.0, -10.0], (10, 1))
    found = count(logits, np.array([0] * 6 + [1] * 4))
    assert found is not None
    assert figures(found, ("a", "b")).calibration_error == pytest.approx(0.4, abs=1e-6)


def test_a_class_without_images_has_no_figures() -> None:
    logits, _ = drawn(20, 2)
    found = count(logits, np.zeros(20, np.int64))
    assert found is not None
    absent = figures(found, ("a", "b")).classes[1]
    assert (absent.sensitivity, absent.auc, absent.roc) == (None, None, ())
    assert absent.specificity is not None


def test_nothing_is_counted_of_nothing_or_of_too_many_classes() -> None:
    assert count(np.zeros((0, 2)), np.zeros(0, np.int64)) is None
    assert count(np.zeros((2, MAX_CLASSES + 1)), np.zeros(2, np.int64)) is None
    assert count(np.full((2, 2), np.nan), np.zeros(2, np.int64)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"confusion": ((1, 2), (3, 4))},
        {"taken": (0,) * 15},
        {"positives": ()},
        {"right": (0,)},
        {"loss": -1.0},
        {"confusion": ((1, -2, 0),) * 3},
    ],
)
def test_counts_that_contradict_themselves_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Counts.model_validate({**counted(30).model_dump(), **change})
