import numpy as np
import pytest
from scipy.stats import binomtest

from primia.errors import InvalidInput
from primia.evaluation.comparison import bootstrap, compare_classifiers, kappa

TRUTH = np.tile([0, 1], 100)


def test_mcnemar_counts_what_only_one_recognises() -> None:
    first, second = TRUTH.copy(), TRUTH.copy()
    first[:3], second[3:12] = 1 - first[:3], 1 - second[3:12]
    found = compare_classifiers(first, second, TRUTH)
    assert (found.first_only, found.second_only) == (9, 3)
    assert found.p == pytest.approx(binomtest(3, 12, 0.5).pvalue)
    assert compare_classifiers(first, first, TRUTH).p == 1


def test_many_differences_use_the_approximation() -> None:
    second = TRUTH.copy()
    second[:40] = 1 - second[:40]
    found = compare_classifiers(TRUTH, second, TRUTH)
    assert found.first_only == 40
    assert found.p < 1e-6


def test_kappa() -> None:
    assert kappa(TRUTH, TRUTH) == 1
    assert kappa(np.zeros(4, int), np.zeros(4, int)) == 1
    assert kappa(TRUTH, 1 - TRUTH) == pytest.approx(-1)
    half = np.concatenate([TRUTH[:100], np.tile([0, 0, 1, 1], 25)])
    assert kappa(TRUTH, half) == pytest.approx(0.5)


def test_the_bootstrap_covers_a_shares_own_spread() -> None:
    right = np.arange(400) % 4 > 0
    found = bootstrap(lambda rows: float(right[rows].mean()), 400)
    assert found.value == 0.75
    spread = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert found.low == pytest.approx(0.75 - spread, abs=0.01)
    assert found.high == pytest.approx(0.75 + spread, abs=0.01)
    assert bootstrap(lambda rows: float(right[rows].mean()), 400) == found


def test_what_does_not_compare() -> None:
    with pytest.raises(InvalidInput, match="shapes"):
        kappa(TRUTH, TRUTH[:-1])
    with pytest.raises(InvalidInput, match="two images"):
        bootstrap(lambda _: 1.0, 1)
