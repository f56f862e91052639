import numpy as np
import pytest

from primia.errors import InvalidInput
from primia.fixed_point import LIMIT, decode, encode


def test_round_trip_within_half_a_unit():
    x = np.linspace(-5, 5, 1001)
    assert np.abs(decode(encode(x, 10), 10) - x).max() <= 2.0**-11


def test_borders_and_negatives():
    x = np.array([0.0, -1.0, -(2.0**-10), 0.5 * 2.0**-10, 1.5 * 2.0**-10])
    assert encode(x, 10).tolist() == [0, 2**32 - 1024, 2**32 - 1, 0, 2]
    largest = (LIMIT - 1) / 1024
    assert decode(encode(np.array([largest, -largest]), 10), 10).tolist() == [largest, -largest]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(InvalidInput, match="finite"):
        encode(np.array([0, value], dtype=np.float32), 10)


@pytest.mark.parametrize("value", [LIMIT / 1024, -LIMIT / 1024])
def test_values_without_headroom_are_refused(value):
    with pytest.raises(InvalidInput, match="or more"):
        encode(np.array([value]), 10)
