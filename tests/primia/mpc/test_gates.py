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
from primia.mpc.oracle import to_ring
from tests.support.inference import seed, words

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
    assert max(delta.max(), masked.values.max()) < 1 << gate.width
    choices = client_answer(gate, SEEDS[1], masked, Cursor(keys), evaluator)
    results = server_close(gate, SEEDS[0], masked, shares, choices, Cursor(corrections))
    totals = [(a + b).astype(np.int64) for a, b in zip(results, masks, strict=True)]
    return [to_ring(total, gate.result_width) for total in totals]


def samples(count, width, number=1):
    """Signed values of every magnitude that ``width`` bits hold, those around zero and the
    borders among them."""
    y = words(number, count).astype(np.int64) - (1 << 31)
    y >>= words(number + 1, count, 5).astype(np.int64) % 31
    low, high = -(1 << (width - 1)), (1 << (width - 1)) - 1
    y = np.clip(y, low, high)
    edge = np.clip(np.arange(-(1 << 12), 1 << 12), low, high)
    y[: len(edge)] = edge
    y[len(edge) : len(edge) + 2] = low, high
    return y


@pytest.mark.parametrize("width", [2, 3, 8, 9, 16, 17, 24, 31])
def test_relu_of_a_narrow_value_is_exact_and_widens(width):
    count = BLOCK + 1001
    y = samples(count, width)
    (result,) = select(Gate("relu", count, width, widen=True), y)
    np.testing.assert_array_equal(result, np.maximum(y, 0))


@pytest.mark.parametrize("width", [2, 11, 19, 32])
def test_relu_within_a_ring_is_exact(width):
    count = BLOCK + 1001
    y = samples(count, width)
    (result,) = select(Gate("max", count, width), y)
    np.testing.assert_array_equal(result, np.maximum(y, 0))


@pytest.mark.parametrize("widen", [False, True])
def test_every_value_of_a_small_ring_under_many_masks(widen):
    y = np.tile(np.arange(-8, 8), 5000)
    (result,) = select(Gate("relu", len(y), 4, widen), y)
    np.testing.assert_array_equal(result, np.maximum(y, 0))


def test_what_stands_above_the_width_means_nothing():
    """Shares of a narrow value may carry anything there."""
    y = samples(20_000, 12)
    noise = words(9, 20_000, 20).astype(np.int64) << 12
    (result,) = select(Gate("relu", len(y), 12, widen=True), y + noise)
    np.testing.assert_array_equal(result, np.maximum(y, 0))


@pytest.mark.parametrize(("width", "coarse"), [(17, 3), (31, 13), (14, 12), (9, 1)])
def test_a_coarse_widening_may_lose_small_positive_values_only(width, coarse):
    count = BLOCK + 77
    low = (1 << coarse) - (1 << (width - 1))  # below, the rounding wraps around
    y = np.maximum(samples(count, width), low)
    (result,) = select(Gate("relu", count, width, True, coarse), y)
    exact = np.maximum(y, 0)
    big = (y < 0) | (y >= 1 << coarse)
    np.testing.assert_array_equal(result[big], exact[big])
    assert ((result == exact) | (result == 0)).all()
    assert (result != exact).any(), "some small value was taken for zero"


@pytest.mark.parametrize(("width", "coarse"), [(17, 3), (32, 13), (14, 11), (9, 2)])
def test_a_coarse_choice_within_a_ring_may_go_wrong_near_zero_on_either_side(width, coarse):
    count, half = BLOCK + 77, 1 << (coarse - 1)
    border = (1 << (width - 1)) - half
    y = np.clip(samples(count, width), half - border, border - 1)
    (result,) = select(Gate("max", count, width, coarse=coarse), y)
    exact = np.maximum(y, 0)
    big = (y < -half) | (y >= half)
    np.testing.assert_array_equal(result[big], exact[big])
    assert ((result == y) | (result == 0)).all()
    wrong = y[result != exact]
    assert (wrong >= 0).any()
    assert (wrong < 0).any()


def test_tiny_negatives_never_come_out_of_a_coarse_comparison():
    """Without the + 1 of its rounding some of them would come out as 2^width."""
    y = np.repeat(np.arange(-16, 0), 4000)
    (result,) = select(Gate("relu", len(y), 17, widen=True, coarse=3), y)
    assert not result.any()


def test_the_first_payload_selects_the_second():
    count = BLOCK + 77
    y, other = samples(count, 32), words(7, count).astype(np.int64) - (1 << 31)
    value, index = select(Gate("label", count, payloads=2), y, other)
    np.testing.assert_array_equal(value, np.maximum(y, 0))
    np.testing.assert_array_equal(index, np.where(y >= 0, other, 0))
