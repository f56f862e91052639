from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from primia.aggregation.errors import InvalidUpdate
from primia.aggregation.plain import WeightedMean, weighted_sum
from primia.errors import InvalidInput, MalformedMessage
from tests.primia.aggregation.federation import weighted_mean


def test_a_mean_by_hand() -> None:
    mean = WeightedMean(3)
    mean.add(np.array([1, 2, -3], dtype=np.float32), 1)
    mean.add(np.array([5, 2, 1], dtype=np.float32).tobytes(), 3)
    assert list(mean.result()) == [4, 2, 0]
    assert mean.samples == 4
    assert mean.result().dtype == np.float32


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.just(3)),
        elements=st.floats(-1e6, 1e6, width=32),
    ),
    st.data(),
)
def test_the_mean_is_the_exact_one_rounded(
    updates: NDArray[np.float32], data: st.DataObject
) -> None:
    samples = [data.draw(st.integers(1, 10**6)) for _ in updates]
    mean = WeightedMean(3)
    for update, own in zip(updates, samples, strict=True):
        mean.add(update.tobytes(), own)
    exact = [
        math.fsum(own * float(update[at]) for update, own in zip(updates, samples, strict=True))
        / sum(samples)
        for at in range(3)
    ]
    largest = float(np.abs(updates).max())
    # float32's smallest numbers lie 2^-149 apart
    around = largest * 2**-49 + 2**-150
    np.testing.assert_allclose(mean.result(), exact, rtol=2**-24, atol=around)


def test_chunks_do_not_show() -> None:
    count = (1 << 18) + 9
    update = np.arange(count, dtype=np.float32)
    mean = WeightedMean(count)
    mean.add(io.BytesIO(update.tobytes()), 2)
    mean.add(-update, 1)
    wanted = weighted_mean([update, -update], [2, 1]).astype("<f4")
    assert np.array_equal(mean.result(), wanted)
    own = mean.total.view(np.float32)[:count]  # the sum's own memory
    assert np.array_equal(mean.result(own), wanted)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_named(value: float) -> None:
    update = np.zeros(300_000, dtype=np.float32)
    update[270_001] = value
    with pytest.raises(InvalidUpdate, match="at index 270001"):
        WeightedMean(300_000).add(update, 1)


@pytest.mark.parametrize("samples", [0, -1, 2**31 + 1])
def test_numbers_of_samples_that_cannot_be_are_refused(samples: int) -> None:
    mean = WeightedMean(1)
    with pytest.raises(InvalidInput, match="samples"):
        mean.add(np.ones(1, dtype=np.float32), samples)
    assert mean.samples == 0


@pytest.mark.parametrize("payload", [b"", bytes(11), bytes(16)], ids=len)
def test_payloads_of_another_length_are_refused(payload: bytes) -> None:
    with pytest.raises(MalformedMessage):
        WeightedMean(3).add(payload, 1)


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no updates"):
        WeightedMean(3).result()


def test_a_stored_mean_goes_on() -> None:
    first = WeightedMean(2)
    first.add(np.array([1, 2], dtype=np.float32), 10)
    again = WeightedMean(2, np.frombuffer(first.total.tobytes()).copy(), first.samples)
    again.add(np.array([4, 5], dtype=np.float32), 5)
    assert list(again.result()) == [2, 3]


@pytest.mark.parametrize("stored", [np.zeros(3), np.zeros(2, np.float32)], ids=["long", "narrow"])
def test_a_stored_mean_of_another_round_is_refused(stored: Any) -> None:
    with pytest.raises(InvalidInput, match="stored sum"):
        WeightedMean(2, stored)


@pytest.mark.parametrize("count", [0, -5, 2**31 + 1])
def test_means_of_absurd_sizes_are_refused(count: int) -> None:
    with pytest.raises(InvalidInput):
        WeightedMean(count)


@pytest.mark.parametrize("count", [1, 5, (1 << 18) + 3])
def test_updates_read_side_by_side_give_the_sum_of_one_after_the_other(count: int) -> None:
    rng = np.random.default_rng(5)
    updates = [rng.normal(size=count).astype("<f4") for _ in range(3)]
    one_by_one = WeightedMean(count)
    for number, update in enumerate(updates, start=1):
        one_by_one.add(update, number)
    first = [piece.copy() for _, piece in weighted_sum(count, [(updates[0], 1)])]
    before = io.BytesIO(np.concatenate(first).tobytes())
    rest = [(io.BytesIO(each.tobytes()), n) for n, each in enumerate(updates[1:], start=2)]
    total = np.concatenate([piece.copy() for _, piece in weighted_sum(count, rest, before)])
    np.testing.assert_array_equal(total, one_by_one.total)


@pytest.mark.parametrize("size", [4 * 5 - 1, 4 * 5 + 1])
def test_updates_read_side_by_side_have_the_announced_length(size: int) -> None:
    update = np.zeros(5, dtype="<f4")
    with pytest.raises(MalformedMessage):
        list(weighted_sum(5, [(io.BytesIO(update.tobytes()), 1), (io.BytesIO(bytes(size)), 1)]))
    with pytest.raises(MalformedMessage):
        list(weighted_sum(5, [(update, 1)], io.BytesIO(bytes(2 * size))))


def test_an_update_read_beside_others_that_is_not_finite_is_named_by_its_index() -> None:
    update = np.zeros(300_000, dtype="<f4")
    update[270_000] = np.nan
    with pytest.raises(InvalidUpdate, match="270000"):
        list(weighted_sum(300_000, [(np.zeros(300_000, dtype="<f4"), 1), (update, 1)]))
