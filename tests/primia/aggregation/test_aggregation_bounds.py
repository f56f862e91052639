"""How far an update may reach: what is refused, and what exponents a change within bounds needs."""

from __future__ import annotations

import numpy as np
import pytest

from primia.aggregation.bounds import Bounds, Norms, check_norm
from primia.aggregation.errors import InvalidUpdate
from primia.aggregation.quantise import exponents
from primia.aggregation.terms import Groups

GROUPS = Groups(3, 1)


def vector(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_a_change_out_of_proportion_is_refused():
    weights = vector(0.3, 0.4, 0.0, 1e6)  # the buffers have a bound of their own
    assert Norms.of(weights, GROUPS).bounds(None) == Bounds(10.0, 1e7)
    check_norm(vector(9, 0, 0, 1e7), weights, GROUPS)
    check_norm(vector(90, 0, 0, 0), weights, GROUPS, 91.0)
    with pytest.raises(InvalidUpdate, match="parameters has a norm of 11; the run's bound is 10"):
        check_norm(vector(11, 0, 0, 0), weights, GROUPS)
    with pytest.raises(InvalidUpdate, match="buffers has a norm"):
        check_norm(vector(0, 0, 0, 1.1e7), weights, GROUPS)
    with pytest.raises(InvalidUpdate, match="norm of 3e"):
        check_norm(vector(3e38, 0, 0, 0), weights, GROUPS)


def test_what_is_not_finite_is_named_by_its_index():
    for bad in (np.nan, np.inf, -np.inf):
        for index in range(4):
            change = vector(0, 0, 0, 0)
            change[index] = bad
            with pytest.raises(InvalidUpdate, match=f"at index {index}") as found:
                check_norm(change, vector(1, 0, 0, 1), GROUPS)
            assert found.value.extra["index"] == index


def test_norms_are_the_same_however_the_vector_is_cut():
    values = np.random.default_rng(1).normal(size=700_000).astype(np.float32)
    groups = Groups(600_001, 99_999)
    whole, cut = Norms.of(values, groups), Norms(groups)
    for start in range(0, len(values), 1000):
        cut.add(values[start : start + 1000])
    expected = [np.linalg.norm(part.astype(np.float64)) for part in np.split(values, [600_001])]
    for found in (whole, cut):
        assert [found.parameters, found.buffers] == pytest.approx(expected, rel=1e-12)


def test_a_change_at_its_bound_needs_the_largest_exponents():
    bounds = Bounds(8.0, 2.0**20)
    at_bound = exponents(vector(8, 0, 0, 2.0**20), GROUPS)
    assert bounds.exponents() == at_bound == (4, 21)
    bounds.check_exponents(at_bound)
    for beyond, name in (((5, 21), "parameters"), ((-40, 22), "buffers")):
        with pytest.raises(InvalidUpdate, match=f"of the {name} is that of a change beyond"):
            bounds.check_exponents(beyond)
