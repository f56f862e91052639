from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from primia.aggregation.errors import InvalidUpdate
from primia.aggregation.quantise import (
    MAX_EXPONENT,
    MIN_EXPONENT,
    Exponents,
    decode,
    encode,
    exponents,
    fraction_bits,
    largest_exponents,
    step,
    tolerance,
)
from primia.aggregation.terms import MAX_NODES, Groups
from tests.primia.aggregation.federation import random_update

GROUPS = Groups(parameters=3, buffers=2)


def vector(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def encoded(
    update: NDArray[np.float32],
    groups: Groups,
    bounds: Exponents,
    samples: int = 1,
    total: int = 1,
) -> NDArray[np.uint32]:
    out = np.empty(groups.size, dtype=np.uint32)
    encode(update, groups, bounds, samples, total, out)
    return out


def decoded(
    total: NDArray[np.uint32], groups: Groups, bounds: Exponents, weight: float
) -> NDArray[np.float32]:
    out = np.empty(groups.size, dtype=np.float32)
    decode(total, groups, bounds, weight, out)
    return out


def test_exponents_are_the_least_strict_bounds() -> None:
    assert exponents(vector(0.5, -0.3, 0.1, 3.0, -7.9), GROUPS) == (0, 3)
    assert exponents(vector(0.4999, 0, 0, 8, 0), GROUPS) == (-1, 4)
    just_below = float(np.nextafter(np.float32(1), np.float32(0)))
    assert exponents(vector(just_below, 0, 0, 1.0, 0), GROUPS) == (0, 1)


def test_no_change_and_the_tiniest_change_have_the_least_exponent() -> None:
    assert exponents(vector(0, 0, 0, 0, 0), GROUPS) == (MIN_EXPONENT, MIN_EXPONENT)
    assert exponents(vector(1e-45, 0, 0, 2.0**-41, 0), GROUPS) == (MIN_EXPONENT, MIN_EXPONENT)
    assert exponents(vector(2.0**-40, 0, 0, 0, 0), GROUPS)[0] == MIN_EXPONENT + 1


def test_an_empty_group_has_the_least_exponent() -> None:
    assert exponents(vector(1.5), Groups(1, 0)) == (1, MIN_EXPONENT)
    assert exponents(vector(1.5), Groups(0, 1)) == (MIN_EXPONENT, 1)


def test_a_diverged_change_is_refused() -> None:
    assert exponents(vector(0, 0, 0, 0, 2.0**39), GROUPS)[1] == MAX_EXPONENT
    with pytest.raises(InvalidUpdate, match="buffers is too large"):
        exponents(vector(0, 0, 0, 0, 2.0**40), GROUPS)


def test_the_round_uses_the_largest_exponent_of_each_group() -> None:
    assert largest_exponents([(0, 5), (-3, 7), (2, -1)]) == (2, 7)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("index", "group"), [(1, "parameters"), (4, "buffers")])
def test_values_that_are_not_finite_are_named(value: float, index: int, group: str) -> None:
    update = vector(0, 0, 0, 0, 0)
    update[index] = value
    for refused in (
        lambda: exponents(update, GROUPS),
        lambda: encoded(update, GROUPS, (0, 0)),
    ):
        with pytest.raises(InvalidUpdate, match=f"{group}, at index {index}") as caught:
            refused()
        assert caught.value.extra == {"index": index, "group": group}


def test_the_index_counts_from_the_start_of_the_vector_in_later_chunks() -> None:
    update = np.zeros(200_000, dtype=np.float32)
    update[150_003] = np.nan
    with pytest.raises(InvalidUpdate, match="parameters, at index 150003"):
        exponents(update, Groups(200_000, 0))
    with pytest.raises(InvalidUpdate, match="buffers, at index 150003"):
        exponents(update, Groups(77, 200_000 - 77))


@pytest.mark.parametrize(
    "update",
    [
        np.zeros(5),
        np.zeros(4, dtype=np.float32),
        np.zeros((5, 1), dtype=np.float32),
        np.zeros(10, dtype=np.float32)[::2],
        np.zeros(5, dtype=np.int32),
    ],
    ids=["float64", "short", "matrix", "strided", "integers"],
)
def test_other_arrays_than_a_float32_vector_are_refused(update: NDArray[np.float32]) -> None:
    with pytest.raises(InvalidUpdate):
        exponents(update, GROUPS)
    with pytest.raises(InvalidUpdate):
        encoded(update, GROUPS, (0, 0))


def test_a_change_beyond_the_rounds_bound_is_refused_never_clipped() -> None:
    with pytest.raises(InvalidUpdate, match=r"parameters exceeds the round's bound of 2\^0"):
        encoded(vector(1.0, 0, 0, 0, 0), GROUPS, (0, 0))


def test_a_wrong_output_is_refused() -> None:
    for out in (np.empty(5, dtype=np.int64), np.empty(4, dtype=np.uint32)):
        with pytest.raises(ValueError, match="uint32 vector"):
            encode(vector(0, 0, 0, 0, 0), GROUPS, (0, 0), 1, 1, out)  # type: ignore[arg-type]


def test_frozen_encodings() -> None:
    found = encoded(vector(0.5, -0.25, 1e-9, 3.0, -8.0), GROUPS, (0, 4), samples=3, total=4)
    assert [int(value) for value in found] == [
        0x30000000,  # 0.375 · 2^31
        0xE8000000,  # -0.1875 · 2^31
        0x00000002,  # 1.61 rounds up
        0x12000000,  # 2.25 · 2^27
        0xD0000000,  # -6 · 2^27
    ]
    assert fraction_bits(0) == 31
    assert fraction_bits(4) == 27


def test_halves_round_to_even() -> None:
    unit = 2.0**-31
    found = encoded(vector(1.5 * unit, 2.5 * unit, -0.5 * unit, 0, 0), GROUPS, (0, 0))
    assert list(found.view(np.int32)) == [2, 2, 0, 0, 0]


def test_encode_and_decode_work_in_place() -> None:
    groups = Groups(100_000, 50_000)
    update = random_update(1, groups)
    bounds = exponents(update, groups)
    apart = encoded(update, groups, bounds)
    memory = update.copy()
    encode(memory, groups, bounds, 1, 1, memory.view(np.uint32))
    assert np.array_equal(memory.view(np.uint32), apart)
    expected = decoded(apart, groups, bounds, 0.5)
    decode(memory.view(np.uint32), groups, bounds, 0.5, memory)
    assert np.array_equal(memory, expected)


@settings(max_examples=150, deadline=None)
@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 8), st.just(4)),
        elements=st.floats(-(2.0**20), 2.0**20, width=32),
    ),
    st.data(),
)
def test_the_opened_mean_is_within_the_step_of_the_exact_mean(
    updates: NDArray[np.float32], data: st.DataObject
) -> None:
    """Exact rational arithmetic is the oracle; float32's own rounding is taken out of the step."""
    count = len(updates)
    groups = Groups(4, 0)
    samples = data.draw(st.lists(st.integers(1, 10**6), min_size=count, max_size=count))
    survivors = data.draw(st.integers(1, count))
    bounds = largest_exponents([exponents(update, groups) for update in updates])
    total = np.zeros(4, dtype=np.uint32)
    for update, own in zip(updates[:survivors], samples, strict=False):
        total += encoded(update, groups, bounds, own, sum(samples))
    weight = sum(samples[:survivors]) / sum(samples)
    opened = total.view(np.int32) / math.ldexp(weight, fraction_bits(bounds[0]))
    rounded = decoded(total, groups, bounds, weight)
    bound = Fraction(step(bounds[0], survivors, weight))
    for at in range(4):
        exact = sum(
            Fraction(own) * Fraction(float(update[at]))
            for update, own in zip(updates[:survivors], samples, strict=False)
        ) / sum(samples[:survivors])
        assert abs(Fraction(float(opened[at])) - exact) <= bound
        assert abs(Fraction(float(rounded[at])) - exact) <= tolerance(bounds[0], survivors, weight)


def test_the_largest_sum_of_the_most_nodes_does_not_overflow() -> None:
    """Weights that make every node round up by half a unit, at the largest value below 2^e."""
    groups = Groups(1, 0)
    largest = vector(float(np.nextafter(np.float32(1), np.float32(0))))
    total = sum(int(encoded(largest, groups, (0, 0), 1, MAX_NODES)[0]) for _ in range(MAX_NODES))
    assert 2**31 - 2**8 < total < 2**31
    bound = (2**31 - 2**7) + MAX_NODES * (0.5 + 2.0**-20)
    assert bound < 2**31
    assert bound + 3.5 > 2**31 - 3  # hardly a node more would fit


def test_the_step_grows_with_nodes_and_shrinks_with_the_exponent() -> None:
    assert step(0, 2) == pytest.approx(2.0**-31, rel=1e-5)
    assert step(0, 4) == 2 * step(0, 2)
    assert step(-3, 2) == step(0, 2) / 8
    assert step(0, 2, weight=0.5) == 2 * step(0, 2)
    assert tolerance(0, 2) > step(0, 2) + 2.0**-25
