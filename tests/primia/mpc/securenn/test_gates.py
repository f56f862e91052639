"""The protocols on shares, all three roles in one process; rounds and bytes against the paper's."""

import numpy as np
import pytest

from primia.mpc.securenn import field, gates, odd, ring64
from primia.mpc.securenn.assistant import Helper
from primia.mpc.securenn.compare import draw_blinds
from primia.mpc.securenn.gates import (
    Conversion,
    Party,
    Triple,
    compare,
    derivative,
    multiply,
    select_positive,
    take_deal,
)
from primia.mpc.securenn.layout import Step, blocks, stream
from primia.mpc.securenn.wire import ASSISTANT, send
from primia.prg import Stream
from tests.support.inference import seed
from tests.support.securenn import Grid

COMMON, DEALT = seed(10), (seed(11), seed(12))
PARTIES = tuple(Party(i, COMMON, DEALT[i]) for i in (0, 1))
BORDERS = sorted(
    {s * (2**k + d) for k in (0, 1, 12, 31, 32, 61) for d in (-1, 0, 1) for s in (1, -1)}
)


def shares(values, number=20):
    values = np.array(values, np.int64).view(np.uint64)
    first = ring64.uniform(Stream(seed(number), "shares"), values.shape)
    return first, values - first


def odd_shares(values, number=21):
    values = odd.reduce(np.array(values, np.uint64))
    first = odd.uniform(Stream(seed(number), "shares"), values.shape)
    return first, odd.subtract(values, first)


def together(results):
    return (results[0] + results[1]).view(np.int64)


def helper(count, payloads=1, gate=0):
    return Helper(DEALT, gate, Step(count, payloads))


def conversion(me, a):
    begun = Conversion.begin(me, 0, a)
    yield from send(ASSISTANT, begun.masked)
    yield from begun.compare(me, 0, draw_blinds(me.common, "test", blocks(len(a))))
    return (yield from begun.finish(me, 0))


def converted(values, number=20):
    grid = Grid()
    talks = {i: conversion(PARTIES[i], a) for i, a in enumerate(shares(values, number))}
    results = grid.run({**talks, 2: helper(len(values)).convert()})
    return odd.add(results[0], results[1]), grid


EVEN = [2 * value for value in BORDERS if abs(value) < 2**61]


@pytest.mark.parametrize("number", range(20, 30))
def test_share_conversion_at_the_borders(number):
    found, grid = converted(np.repeat(EVEN, 50), number)
    expected = np.repeat(EVEN, 50).astype(np.int64).view(np.uint64)
    assert (found == expected).all()
    assert max(grid.clocks) == 4


def signs(values):
    """Of elements of the odd ring."""
    grid, count = Grid(), len(values)

    def party(me, a):
        dealt = yield from take_deal(me, 0, count, 1)
        blinds = draw_blinds(me.common, "sign", blocks(count))
        return (yield from gates.most_significant_bit(me, 0, a, dealt, blinds))

    def assistant():
        p2 = helper(count)
        yield from p2.deal()
        yield from p2.sign()

    talks = {i: party(PARTIES[i], a) for i, a in enumerate(odd_shares(values))}
    return together(grid.run({**talks, 2: assistant()})), grid


def test_the_most_significant_bit_at_the_borders():
    values = [0, 1, 2, 2**62, 2**63 - 2, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 3, 2**64 - 2]
    found, grid = signs(np.repeat(np.array(values, np.uint64), 500))
    assert (found == np.repeat([v >= 2**63 for v in values], 500)).all()
    assert max(grid.clocks) == 5  # with the round in which P2 deals


def selected(values, payloads=None, number=20):
    grid = Grid()
    halves = [shares(p, number + 1 + i) for i, p in enumerate(payloads or [values])]
    talks = {
        i: select_positive(PARTIES[i], 0, y, [half[i] for half in halves])
        for i, y in enumerate(shares(values, number))
    }
    results = grid.run({**talks, 2: helper(len(values), len(halves)).run()})
    return [together(pair) for pair in zip(results[0], results[1], strict=True)], grid


def test_relu_at_the_borders_in_no_more_rounds_than_the_papers():
    """Table 1: 10 rounds for a ReLU, 9 for a maximum of two. Here both take 9."""
    values = np.repeat(BORDERS, 100)
    (found,), grid = selected(values)
    assert (found == np.maximum(values, 0)).all()
    assert max(grid.clocks[:2]) == 9
    assert grid.clocks[2] <= 7


def test_relu_over_several_blocks():
    values = Stream(seed(30), "values").words(20_001).view(np.int32).astype(np.int64)
    assert len(list(blocks(len(values)))) == 3
    (found,), _ = selected(values)
    assert (found == np.maximum(values, 0)).all()


def test_several_payloads_follow_one_sign():
    values = np.array(BORDERS)
    first, second = np.arange(len(values)), np.full(len(values), -7)
    found, _ = selected(values, [first, second])
    assert (found[0] == np.where(values >= 0, first, 0)).all()
    assert (found[1] == np.where(values >= 0, second, 0)).all()


def test_bytes_of_a_relu():
    """The paper's count without the shares that come from seeds: P2 sends P1 alone."""
    count = 1000
    _, grid = selected(np.zeros(count, np.int64))
    each = {pair: size / count for pair, size in grid.bytes.items()}
    comparison = 64  # an element of Z_67 a bit
    assert each[0, 2] == each[1, 2] == 8 + 2 * comparison
    assert each[2, 0] == 0
    assert each[2, 1] == 2 * comparison + 6 * 8
    assert each[0, 1] == each[1, 0] == 8 + 2 * 16
    # Table 1, ReLU: 8 l log p + 24 l bits with l = 64; log p rounded up to a byte.
    assert sum(each.values()) < (8 * 64 * 8 + 24 * 64) / 8


@pytest.mark.parametrize("count", [1, 20_001])
def test_a_private_comparison_takes_one_round_however_many_blocks_there_are(count):
    grid, draws = Grid(), Stream(seed(40), "compared")
    x, r = (draws.words((count, 2)).view(np.uint64).ravel() for _ in range(2))
    r[::2] = x[::2]
    beta = draws.bits(count)
    bits = [field.bits_of(x[at : at + size]) for at, size in starts(count)]
    first = [field.uniform(draws, block.shape) for block in bits]
    held = first, [field.subtract(*pair) for pair in zip(bits, first, strict=True)]

    def party(me):
        blinds = draw_blinds(me.common, "test", blocks(count))
        yield from compare(me, held[me.index], r, beta, blinds)

    found = grid.run({0: party(PARTIES[0]), 1: party(PARTIES[1]), 2: helper(count)._compare()})[2]
    assert (found == beta ^ (x > r)).all()
    assert grid.clocks == [0, 0, 1]


def starts(count):
    sizes = list(blocks(count))
    return zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True)


def test_the_derivative_of_a_relu_takes_eight_rounds():
    """Table 1 and section 4.2."""
    values, grid = np.repeat(BORDERS, 20), Grid()

    def party(me, y):
        return (yield from derivative(me, 0, y, 1))[0]

    talks = {i: party(PARTIES[i], y) for i, y in enumerate(shares(values))}
    results = grid.run({**talks, 2: helper(len(values)).run()})
    assert (together(results) == (values >= 0)).all()
    assert max(grid.clocks[:2]) == 8


def test_products_take_one_round():
    x, y = np.array([[3, -4], [2**40, 5]]), np.array([-7, 2**31])
    grid = Grid()
    xs, ys = shares(x), shares(y, 22)
    a = [ring64.uniform(stream(DEALT[i], 0, "test a"), x.shape) for i in (0, 1)]
    b = [ring64.uniform(stream(DEALT[i], 0, "test b"), len(y)) for i in (0, 1)]
    ab = ((a[0] + a[1]) * (b[0] + b[1])).view(np.int64)
    talks = {
        i: multiply(PARTIES[i], Triple.of(PARTIES[i], 0, "test", shares(ab, 23)[i]), xs[i], ys[i])
        for i in (0, 1)
    }
    assert (together(grid.run(talks)) == x * y).all()
    assert max(grid.clocks) == 1
