"""Rounded normals: the right distribution, on the integers, from the secure stream alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from primia.noise import LARGEST_DEVIATION, rounded_normals
from primia.prg import Seed, Stream


def stream(number: int = 1) -> Stream:
    return Stream(Seed(bytes([number] * 16)), "noise")


def test_a_stream_gives_the_same_noise_and_its_next_stretch_other_noise() -> None:
    first, again = stream(), stream()
    drawn = rounded_normals(first, 1001, 50.0)
    assert drawn.dtype == np.int64
    assert np.array_equal(drawn, rounded_normals(again, 1001, 50.0))
    assert not np.array_equal(drawn, rounded_normals(again, 1001, 50.0))


@pytest.mark.parametrize("deviation", [0.3, 1.0, 4.0])
def test_each_integer_has_its_probability(deviation: float) -> None:
    count = 400_000  # several chunks
    drawn = rounded_normals(stream(), count, deviation)
    reach = max(1, round(3 * deviation))
    edges = np.concatenate([[-np.inf], np.arange(-reach, reach) + 0.5, [np.inf]])
    expected = np.diff(stats.norm.cdf(edges, scale=deviation)) * count
    found, _ = np.histogram(drawn, np.concatenate([[-1e9], np.arange(-reach, reach) + 0.5, [1e9]]))
    assert stats.chisquare(found, expected).pvalue > 1e-4


def test_large_deviations_are_normal_and_leave_no_holes() -> None:
    drawn = rounded_normals(stream(), 200_000, LARGEST_DEVIATION)
    assert stats.kstest(drawn / LARGEST_DEVIATION, "norm").pvalue > 1e-4
    # Low bits are uniform: neighbouring integers are equally likely.
    assert stats.chisquare(np.bincount(drawn & 255, minlength=256)).pvalue > 1e-4


def test_no_noise_and_too_much() -> None:
    assert not rounded_normals(stream(), 5, 0).any()
    assert len(rounded_normals(stream(), 0, 1)) == 0
    for bad in (-1.0, 2 * LARGEST_DEVIATION, float("nan")):
        with pytest.raises(ValueError, match="deviation"):
            rounded_normals(stream(), 5, bad)
