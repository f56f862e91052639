"""One gate at a time, both parties and the dealer, on arbitrary ring elements."""

import numpy as np
import pytest

from primia.fss.evaluation import NumpyEvaluator
from primia.fss.generation import NumpyGenerator
from primia.fss.geometry import BLOCK, blocks
from primia.mpc.dealer import deal_block
from primia.mpc.gates import client_answer, client_prepare, server_close, server_open
from primia.mpc.masks import GateStreams
from primia.mpc.material import Cursor, correction_words
from primia.mpc.operations import Gate
from tests.support.inference import plain_relu, seed, words

SEEDS = (seed(51), 0), (seed(52), 0)  # of P0 and P1: seed and gate number


def deal(gate, count):
    """P0's corrections and the keys, as cursors' makers."""
    streams = [GateStreams(*given) for given in SEEDS]
    corrections, keys = [], []
    for start, stop in blocks(count):
        block = deal_block(gate, stop - start, *streams, NumpyGenerator())
        corrections += block.corrections
        keys.append(block.keys)
    return np.concatenate(corrections).view(np.uint8), np.concatenate(keys)


def select(gate, *payloads):
    """Run the gate on values shared at random; the opened results, one a payload."""
    payloads = [np.asarray(y).astype(np.int64).astype(np.uint32) for y in payloads]
    count, evaluator = len(payloads[0]), NumpyEvaluator()
    ours = [words(60 + i, count) for i in range(len(payloads))]
    theirs = [y - y0 for y, y0 in zip(payloads, ours, strict=True)]
    corrections, keys = deal(gate, count)
    assert corrections.nbytes == 4 * count * correction_words(gate)
    assert keys.nbytes == gate.key.key_bytes(count)
    delta, masks = client_prepare(gate, GateStreams(*SEEDS[1]), theirs)
    masked, shares = server_open(gate, SEEDS[0], ours, delta, Cursor(keys), evaluator)
    choices = client_answer(gate, SEEDS[1], masked, Cursor(keys), evaluator)
    results = server_close(gate, SEEDS[0], masked, shares, choices, Cursor(corrections))
    return [(a + b).view(np.int32).astype(np.int64) for a, b in zip(results, masks, strict=True)]


def opened_mask(count):
    halves = [GateStreams(*given).words("r", count) for given in SEEDS]
    return (halves[0] + halves[1]).astype(np.int64)


def samples(count, bits, drop_low=0, number=1):
    """Signed values of every magnitude, with the borders of what a gate takes: from -2^bits +
    2^drop_low to 2^bits - 1."""
    y = words(number, count).astype(np.int64) - (1 << 31)
    y >>= words(number + 1, count, 5).astype(np.int64) % 31
    low, high = (1 << drop_low) - (1 << bits), (1 << bits) - 1
    y = np.clip(y, low, high)
    edge = np.arange(-(1 << 12), 1 << 12)
    y[: len(edge)] = edge
    y[len(edge) : len(edge) + 2] = low, high
    return y


@pytest.mark.parametrize("shift", [1, 10, 15, 24])
def test_relu_with_truncation_is_off_by_at_most_one_unit(shift):
    """2.6 * 10^5 gates a shift: error 0 or + 1; y below the dropped bits may come out as zero."""
    count, drop_low = 4 * BLOCK, max(0, shift - 2)
    gate = Gate("relu", count, shift, drop_low)
    y = samples(count, 31, drop_low)
    (result,) = select(gate, y)
    exact = np.maximum(y, 0) >> shift
    assert set(np.unique(result - exact)) == {0, 1}
    assert not result[y < 0].any(), "a negative value never comes out as anything but zero"
    np.testing.assert_array_equal(result, plain_relu(y, shift, opened_mask(count), drop_low))


@pytest.mark.parametrize("shift", [10, 15])
def test_tiny_negatives_and_positives_at_the_border(shift):
    """Every y around zero, each under 64 masks: without the + 1 of the comparison's rounding some
    of the negative ones would come out as 2^(32 - shift)."""
    edge = np.arange(-(1 << shift) // 4 - 8, (1 << shift) // 4 + 8)
    y = np.repeat(edge, 64)
    gate = Gate("relu", len(y), shift, shift - 2)
    (result,) = select(gate, y)
    assert not result[y < 0].any()
    assert set(np.unique(result)) <= {0, 1}


@pytest.mark.parametrize("drop_low", [0, 8, 13])
def test_relu_without_truncation(drop_low):
    """Exact above the dropped bits; below them the value or zero."""
    count = BLOCK + 1001
    y = samples(count, 31, drop_low)
    (result,) = select(Gate("max", count, 0, drop_low), y)
    exact = np.maximum(y, 0)
    big = (y < 0) | (y >= 1 << drop_low)
    np.testing.assert_array_equal(result[big], exact[big])
    assert ((result == exact) | (result == 0)).all()


@pytest.mark.parametrize(("drop_low", "drop_high"), [(0, 4), (13, 10), (8, 18)])
def test_a_window_of_the_ring_decides_for_values_that_fit_it(drop_low, drop_high):
    count = 20_000
    y = samples(count, 31 - drop_high, drop_low)
    (result,) = select(Gate("max", count, 0, drop_low, drop_high), y)
    exact = np.maximum(y, 0)
    big = (y < 0) | (y >= 1 << drop_low)
    np.testing.assert_array_equal(result[big], exact[big])


def test_a_window_with_truncation():
    count, shift = 50_000, 12
    y = samples(count, 24, shift - 2)
    (result,) = select(Gate("relu", count, shift, shift - 2, drop_high=7), y)
    assert set(np.unique(result - (np.maximum(y, 0) >> shift))) == {0, 1}


def test_the_first_payload_selects_the_second():
    count = BLOCK + 77
    y, other = samples(count, 31), words(7, count).astype(np.int64) - (1 << 31)
    value, index = select(Gate("label", count, payloads=2), y, other)
    np.testing.assert_array_equal(value, np.maximum(y, 0))
    np.testing.assert_array_equal(index, np.where(y > 0, other, 0))


def test_every_small_value_in_the_smallest_window():
    """Two bits compared: y from -1 to 1, under many masks."""
    y = np.tile(np.arange(-1, 2), 700)
    gate = Gate("max", len(y), 0, 0, 30)
    assert gate.key.domain_bits == 1
    (result,) = select(gate, y)
    np.testing.assert_array_equal(result, np.maximum(y, 0))


def test_the_truncation_error_is_fair():
    """P(+ 1) is the fraction that the shift drops: 2^17 samples, 6 sigma."""
    shift, count = 12, 2 * BLOCK
    y = np.full(count, (1000 << shift) + (1 << (shift - 2)))
    (result,) = select(Gate("relu", count, shift, shift - 2), y)
    ups = int((result - 1000).sum())
    assert abs(ups - count / 4) < 6 * (count * 3 / 16) ** 0.5
