"""Shares and masks where sums wrap and borrow: every combination of them, for each protocol."""

import numpy as np
import pytest

from primia.mpc.securenn import assistant, gates, odd, ring64
from primia.mpc.securenn.assistant import Helper
from primia.mpc.securenn.compare import draw_blinds
from primia.mpc.securenn.gates import Conversion, Party, select_positive, take_deal
from primia.mpc.securenn.layout import Step, blocks
from primia.mpc.securenn.wire import ASSISTANT, send
from tests.support.inference import seed
from tests.support.securenn import Grid

COMMON, DEALT = seed(10), (seed(11), seed(12))
PARTIES = tuple(Party(i, COMMON, DEALT[i]) for i in (0, 1))
TOP, MOST = 2**63, 2**64 - 1  # MOST is 0 in the odd ring
SHARES = (0, 1, TOP - 1, TOP, TOP + 1, MOST - 1, 0x5555555555555555)
MASKS = (0, 1, TOP - 1, TOP, MOST - 1)


def combined(*axes):
    """Every combination, one a value."""
    grids = np.meshgrid(*(np.array([v % 2**64 for v in axis], np.uint64) for axis in axes))
    return [grid.ravel() for grid in grids]


class Fixed:
    """A stream of these values."""

    def __init__(self, values):
        self.values = values


@pytest.fixture
def draw(monkeypatch):
    """draw((seed, name, values), …): these streams give these values, others stay random."""
    known, stream = {}, gates.stream
    for module in (gates, assistant):
        monkeypatch.setattr(
            module,
            "stream",
            lambda s, gate, name: (
                Fixed(known[id(s), name]) if (id(s), name) in known else stream(s, gate, name)
            ),
        )
    for ring in (ring64, odd):

        def uniform(source, shape, real=ring.uniform):
            if not isinstance(source, Fixed):
                return real(source, shape)
            assert source.values.shape == (shape,)
            return source.values.copy()

        monkeypatch.setattr(ring, "uniform", uniform)

    def choose(*given):
        known.update({(id(s), name): values for s, name, values in given})

    return choose


def test_share_conversion(draw):
    """The share of P0 and both masks; with r0 + r1 = 0 the mask is another one."""
    even = (0, 2, TOP, TOP - 2, MOST - 1, 2**62, 0xAAAAAAAAAAAAAAAA)
    values, a0, r0, r1 = combined(even, (*SHARES, MOST), (*MASKS, MOST), (*MASKS, MOST))
    draw((COMMON, "r0", r0), (COMMON, "r1", r1))

    def party(me, a):
        begun = Conversion.begin(me, 0, a)
        yield from send(ASSISTANT, begun.masked)
        yield from begun.compare(me, 0, draw_blinds(me.common, "test", blocks(len(a))))
        return (yield from begun.finish(me, 0))

    talks = {0: party(PARTIES[0], a0), 1: party(PARTIES[1], values - a0)}
    helper = Helper(DEALT, 0, Step(len(values)))
    results = Grid().run({**talks, 2: helper.convert()})
    assert len(values) == 7 * 8 * 6 * 6
    assert (odd.add(results[0], results[1]) == values).all()


def test_the_most_significant_bit(draw):
    """2a + x wraps in the odd ring, or not, at both parties and in their sum."""
    elements = (0, 1, 2**62, TOP - 1, TOP, TOP + 1, MOST - 1)
    values, a0, x0, x1 = combined(elements, SHARES, MASKS, MASKS)
    draw((DEALT[0], "x", x0), (DEALT[1], "x", x1))

    def party(me, a):
        dealt = yield from take_deal(me, 0, len(a), 1)
        blinds = draw_blinds(me.common, "sign", blocks(len(a)))
        return (yield from gates.most_significant_bit(me, 0, a, dealt, blinds))

    def helper():
        p2 = Helper(DEALT, 0, Step(len(values)))
        yield from p2.deal()
        yield from p2.sign()

    talks = {0: party(PARTIES[0], a0), 1: party(PARTIES[1], odd.subtract(values, a0))}
    results = Grid().run({**talks, 2: helper()})
    assert len(values) == 7 * 7 * 5 * 5
    assert (results[0] + results[1] == values >> np.uint64(63)).all()


def test_a_relu(draw):
    """All of them at once, for values of both signs up to the largest."""
    edge = 2**62 - 1
    signed = (0, 1, -1, 2**31, -(2**31), edge, -edge, 0x1555555555555555)
    masks = (0, TOP - 1, MOST - 1)
    values, y0, r0, r1, x0, x1 = combined(signed, SHARES, masks, masks, masks, masks)
    draw((COMMON, "r0", r0), (COMMON, "r1", r1), (DEALT[0], "x", x0), (DEALT[1], "x", x1))
    talks = {i: select_positive(PARTIES[i], 0, y, [y]) for i, y in enumerate((y0, values - y0))}
    results = Grid().run({**talks, 2: Helper(DEALT, 0, Step(len(values))).run()})
    found = (results[0][0] + results[1][0]).view(np.int64)
    assert len(values) == 8 * 7 * 3**4
    assert (found == np.maximum(values.view(np.int64), 0)).all()
