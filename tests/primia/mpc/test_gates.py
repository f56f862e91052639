"""One gate at a time, both parties and the dealer, on arbitrary ring elements."""

import itertools

import numpy as np
import pytest

from primia.fss.evaluation import NumpyEvaluator
from primia.fss.generation import NumpyGenerator
from primia.fss.geometry import BLOCK, blocks
from primia.mpc.dealer import deal_block
from primia.mpc.gate_shape import Gate
from primia.mpc.gates import client_answer, client_prepare, server_close, server_open
from primia.mpc.masks import GateStreams
from primia.mpc.material import Cursor
from primia.mpc.oracle import to_ring
from primia.mpc.selection import dealt
from tests.support.inference import seed, words

SEEDS = (seed(51), 0), (seed(52), 0)  # of P0 and P1: seed and gate number


def deal(gate, count):
    """The parties' corrections and the keys, as cursors' makers."""
    streams = [GateStreams(*given) for given in SEEDS]
    corrections, keys = ([], []), []
    for start, stop in blocks(count):
        block = deal_block(gate, stop - start, *streams, NumpyGenerator())
        for party in (0, 1):
            corrections[party].extend(block.corrections[party])
        keys += block.keys
    return [np.concatenate(each).view(np.uint8) for each in corrections], np.concatenate(keys)


def select(gate, *values):
    """Run the gate on values shared at random; the opened results, one a payload."""
    values = [np.asarray(y).astype(np.int64).astype(np.uint32) for y in values]
    assert len(values) == gate.lanes
    count, evaluator = len(values[0]), NumpyEvaluator()
    ours = [words(60 + i, count) for i in range(len(values))]
    theirs = [y - y0 for y, y0 in zip(values, ours, strict=True)]
    corrections, keys = deal(gate, count)
    for party in (0, 1):
        assert corrections[party].nbytes == 4 * count * len(dealt(gate, party))
    assert keys.nbytes == gate.bits * gate.key.key_bytes(count)
    delta, masks = client_prepare(gate, GateStreams(*SEEDS[1]), theirs)
    masked = server_open(gate, SEEDS[0], ours, delta, Cursor(keys), evaluator)
    assert max(delta.max(), masked.values.max()) < 1 << gate.width
    theirs, ours = (Cursor(corrections[party]) for party in (1, 0))
    answer = client_answer(gate, SEEDS[1], masked, theirs, Cursor(keys), evaluator)
    results = server_close(gate, SEEDS[0], masked, answer, ours)
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


@pytest.mark.parametrize("widen", [False, True])
@pytest.mark.parametrize(("width", "coarse"), [(17, 3), (31, 13), (14, 11), (9, 2)])
def test_a_coarse_choice_may_go_wrong_near_zero_on_either_side(width, coarse, widen):
    """What is chosen comes out whole, a small negative value too."""
    count, half = BLOCK + 77, 1 << (coarse - 1)
    border = (1 << (width - 1)) - half
    y = np.clip(samples(count, width), half - border, border - 1)
    (result,) = select(Gate("max", count, width, widen, coarse), y)
    exact = np.maximum(y, 0)
    big = (y < -half) | (y >= half)
    np.testing.assert_array_equal(result[big], exact[big])
    assert ((result == y) | (result == 0)).all()
    wrong = y[result != exact]
    assert (wrong >= 0).any()
    assert (wrong < 0).any()


def test_negatives_below_half_a_coarse_bit_never_come_out():
    """Without the + 1 of its rounding some of them would come out as 2^width."""
    y = np.repeat(np.arange(-20, -4), 4000)
    (result,) = select(Gate("relu", len(y), 17, widen=True, coarse=3), y)
    assert not result.any()


def test_a_coarse_choice_errs_to_neither_side():
    """By less than (coarse bits / 8), at most that low in the middle between zero and its end."""
    y = np.repeat(np.arange(-8, 8), 20_000)
    (result,) = select(Gate("relu", len(y), 17, widen=True, coarse=4), y)
    missed = (np.maximum(y, 0) - result).reshape(16, -1).mean(axis=1)
    expected = np.abs(np.arange(-8, 8)) * (8 - np.abs(np.arange(-8, 8))) / 16
    np.testing.assert_allclose(missed, expected, atol=0.1)


def test_the_first_payload_selects_the_second():
    count = BLOCK + 77
    y, other = samples(count, 32), words(7, count).astype(np.int64) - (1 << 31)
    value, index = select(Gate("label", count, payloads=2), y, other)
    np.testing.assert_array_equal(value, np.maximum(y, 0))
    np.testing.assert_array_equal(index, np.where(y >= 0, other, 0))


def largest(gate, a, b, c):
    """The gate's maximum of three values that are shared."""
    a, b, c = (np.asarray(x, np.int64) for x in (a, b, c))
    (chosen,) = select(gate, a - c, b - c)
    return to_ring(c + chosen, gate.width)


def near(count, width, number):
    """Values of half the ring, so that their differences fit it, with the borders and ties."""
    quarter = 1 << (width - 2)
    values = np.clip(samples(count, width, number), -quarter, quarter - 1)
    ties = np.array(list(itertools.product([-quarter, -1, 0, 1, quarter - 1], repeat=3)))
    values[-len(ties) :] = ties[:, number % 3]
    return values


@pytest.mark.parametrize("width", [3, 8, 17, 32])
def test_the_maximum_of_three_is_exact(width):
    count = BLOCK + 20_001
    a, b, c = (near(count, width, number) for number in (3, 10, 17))
    assert len({number % 3 for number in (3, 10, 17)}) == 3
    found = largest(Gate("max", count, width, ways=3), a, b, c)
    np.testing.assert_array_equal(found, np.maximum(np.maximum(a, b), c))


@pytest.mark.parametrize("widen", [False, True])
@pytest.mark.parametrize("width", [3, 8, 17, 31])
def test_the_maximum_of_values_and_zero_is_exact(width, widen):
    count = BLOCK + 20_001
    values = [near(count, width, number) for number in (3, 10, 17)]
    values[0][: count // 3], values[1][: count // 4] = values[1][: count // 3], -1
    for ways in (3, 4):
        (found,) = select(Gate("pool", count, width, widen, ways=ways), *values[: ways - 1])
        np.testing.assert_array_equal(found, np.maximum(np.max(values[: ways - 1], axis=0), 0))


def test_every_three_values_and_zero_of_a_small_ring_under_many_masks():
    values = np.array(list(itertools.product(range(-4, 4), repeat=3))).T
    values = np.tile(values, 100)
    (found,) = select(Gate("pool", len(values[0]), 4, widen=True, ways=4), *values)
    np.testing.assert_array_equal(found, np.maximum(values.max(axis=0), 0))


def test_every_three_values_of_a_small_ring_under_many_masks():
    """All u, v whose difference fits; over many masks all shares of the bits occur."""
    u, v = np.array(
        [(u, v) for u, v in itertools.product(range(-8, 8), repeat=2) if -8 <= u - v < 8]
    ).T
    u, v = np.tile(u, 800), np.tile(v, 800)
    (found,) = select(Gate("max", len(u), 4, ways=3), u, v)
    np.testing.assert_array_equal(found, np.maximum(np.maximum(u, v), 0))


@pytest.mark.parametrize(("width", "coarse"), [(17, 3), (14, 4), (9, 2), (12, 1)])
def test_a_coarse_maximum_of_three_is_within_its_rounding(width, coarse):
    """One of the three is chosen, less than 2^coarse below the largest: where s and p both go
    wrong, their errors add up. The three bits then contradict each other."""
    span = np.arange(-(1 << coarse), (1 << coarse) + 1)
    close = np.array(list(itertools.product(span, repeat=2)))  # a, b next to c = 0
    close = np.tile(close, (max(40, 3 * (1 << coarse) ** 2), 1))
    count = len(close) + 20_000
    limit = (1 << (width - 2)) - (1 << (coarse - 1))
    a, b, c = (np.clip(near(count, width, n), -limit, limit - 1) for n in (3, 10, 17))
    a[: len(close)], b[: len(close)], c[: len(close)] = *close.T, 0
    found = largest(Gate("max", count, width, coarse=coarse, ways=3), a, b, c)
    missed = np.maximum(np.maximum(a, b), c) - found
    assert ((found == a) | (found == b) | (found == c)).all()
    assert missed.min() == 0
    assert missed.max() == (1 << coarse) - 2
    assert missed[len(close) :].max() < 1 << coarse


def test_a_coarse_maximum_of_three_holds_up_to_the_border_of_its_ring():
    """Differences as large as a coarse comparison takes, of either sign."""
    width, coarse = 10, 3
    border = (1 << (width - 1)) - (1 << (coarse - 1)) - 1
    base = np.array(list(itertools.product([0, 1, border - 1, border], repeat=3)))
    a, b, c = np.tile(base, (500, 1)).T
    found = largest(Gate("max", len(a), width, coarse=coarse, ways=3), a, b, c)
    missed = np.maximum(np.maximum(a, b), c) - (found % (1 << width))
    assert missed.min() == 0
    assert missed.max() < 1 << coarse


def test_the_first_of_three_equals_wins_and_takes_the_second_payload_along():
    count = BLOCK + 77
    values = np.stack([near(count, 32, number) for number in (3, 10, 17)])
    values[:, : count // 2] = values[0, : count // 2] // 2**28  # many ties
    numbers = np.array([5, 6, 7])
    differences = values[0] - values[2], values[1] - values[2]
    indices = np.full(count, -2), np.full(count, -1)
    value, index = select(Gate("label", count, payloads=2, ways=3), *differences, *indices)
    np.testing.assert_array_equal(values[2] + value, values.max(axis=0))
    np.testing.assert_array_equal(7 + index, numbers[values.argmax(axis=0)])
