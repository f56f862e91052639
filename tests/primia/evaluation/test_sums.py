"""Figures as integers: sums over sites give what the images of all sites together give."""

from __future__ import annotations

import numpy as np
import pytest

from primia.aggregation.integers import largest_integer
from primia.aggregation.terms import MAX_NODES
from primia.evaluation import sums
from primia.evaluation.counts import Counts, count, total

CLASSES = 3


def evaluated(seed: int, images: int) -> Counts:
    generator = np.random.default_rng(seed)  # seeded test data
    logits = generator.normal(scale=2, size=(images, CLASSES))
    found = count(logits, generator.integers(0, CLASSES, images))
    assert found is not None
    return found


def test_scores_add_up_to_those_of_all_images() -> None:
    sites = [(37, 0.731, 30 / 37), (5, 2.5, 1 / 5), (1000, 0.0123, 0.999)]
    found = sums.scores(sum(sums.of_scores(*site) for site in sites))
    images = sum(samples for samples, _, _ in sites)
    assert found.samples == images
    loss = sum(samples * value for samples, value, _ in sites) / images
    assert found.loss == pytest.approx(loss, abs=len(sites) * sums.UNIT / 2 / images)
    assert found.accuracy == pytest.approx((30 + 1 + 999) / images, abs=1e-9)


@pytest.mark.parametrize(
    "site",
    [(0, None, None), (9, None, 0.5), (9, float("nan"), 0.5), (9, float("inf"), 0.5)],
)
def test_scores_without_a_loss_add_nothing(site) -> None:
    assert sums.scores(sums.of_scores(*site)) == sums.Tally(0, None, None)


def test_counts_add_up_to_those_of_all_images() -> None:
    parts = [evaluated(1, 41), evaluated(2, 7)]
    vectors = [sums.of_counts(part, CLASSES) for part in parts]
    assert {len(vector) for vector in vectors} == {sums.counts_length(CLASSES)}
    opened = sums.counts(sum(vectors), CLASSES)
    exact = total(parts)
    assert opened is not None
    assert exact is not None
    for name in ("confusion", "positives", "negatives", "taken", "right"):
        assert getattr(opened, name) == getattr(exact, name)
    assert opened.loss == pytest.approx(exact.loss, abs=len(parts) * sums.UNIT)
    assert opened.brier == pytest.approx(exact.brier, abs=len(parts) * sums.UNIT)
    assert opened.confidence == pytest.approx(exact.confidence, abs=len(parts) * sums.UNIT)


def test_no_counts_are_zeros_and_zeros_are_no_counts() -> None:
    assert sums.counts(sums.of_counts(None, CLASSES), CLASSES) is None
    assert sums.counts_length(33) == 0
    assert sums.counts(sums.of_counts(None, 33), 33) is None


def test_no_site_can_make_a_sum_wrap_around() -> None:
    values = sums.of_scores(2**31, 1e300, 1.0)
    assert int(values.max()) <= largest_integer(MAX_NODES)
    assert sums.scores(values).loss == pytest.approx(2**36 / 2**31)


def test_sums_that_no_images_can_have_are_refused() -> None:
    with pytest.raises(sums.Contradictory, match="More images"):
        sums.scores(np.array([3, 0, 3 * 2**20 + 1], dtype=np.uint64))
    vector = sums.of_counts(evaluated(1, 41), CLASSES)
    vector[0] += np.uint64(1)
    with pytest.raises(sums.Contradictory, match="cannot be those"):
        sums.counts(vector, CLASSES)
