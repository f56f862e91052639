"""What each party sees is uniform, whatever the image, the weights and the values are.

Chi-square tests against the uniform distribution at a false-alarm rate of 1e-6 each; all seeds are
fixed, so a run tells the same every time. Controls show that the tests notice what they must.
"""

import itertools

import numpy as np
import pytest
from scipy.stats import chi2

from primia.fss.evaluation import NumpyEvaluator
from primia.mpc.compile_pools import rectified
from primia.mpc.frames import BINDING_BYTES, HEADER_BYTES, Answer, Masked, many_from_planes
from primia.mpc.gate_shape import Gate
from primia.mpc.gates import client_answer, client_prepare, server_close, server_open
from primia.mpc.masks import GateStreams
from primia.mpc.material import Cursor
from primia.mpc.opening import HEADER_BYTES as OPENING_HEADER
from primia.mpc.selection import dealt
from primia.mpc.weights import LayerWeights
from tests.primia.mpc.test_gates import SEEDS, deal
from tests.support.inference import Builder, Session, words

FALSE_ALARM = 1e-6


def looks_uniform(cells, size):
    """Whether values below ``size`` occur equally often."""
    cells = np.ravel(cells)
    assert len(cells) >= 5 * size, "too few samples for the test"
    counts = np.bincount(cells, minlength=size)
    expected = len(cells) / size
    statistic = ((counts - expected) ** 2 / expected).sum()
    return statistic < chi2.isf(FALSE_ALARM, size - 1)


def words_look_uniform(values, width=32):
    """Every byte of numbers of ``width`` bits by itself; the last one may be a part of one."""
    for low in range(0, width, 8):
        bits = min(8, width - low)
        lane = (np.ravel(values) >> np.uint32(low)) & np.uint32((1 << bits) - 1)
        if not looks_uniform(lane, 1 << bits):
            return False
    return True


def joint(*parts):
    """One cell number of several (value, bits)."""
    total = 0
    for value, bits in parts:
        total = (total << bits) | value.astype(np.int64)
    return total


def together(bits):
    """The bits of all comparisons as one number."""
    return joint(*((each, 1) for each in bits))


def top(values, bits, width=32):
    return (values >> np.uint32(width - bits)) & np.uint32((1 << bits) - 1)


BATCH = 256
IMAGES = {
    "black": np.zeros((BATCH, 1, 6, 6)),
    "white": np.full((BATCH, 1, 6, 6), 3.0),
    "negative": np.full((BATCH, 1, 6, 6), -3.0),
}
WEIGHTS = (0, 7, -100)


def network(result):
    b = Builder((1, 6, 6))
    b.head(b.relu(b.max_pool(b.conv(0, 4), 3, 1, 1, low=2), 2), 3)
    return b.plan(6, result)


def rectified_network():
    """Its pool takes the ReLU into a gate of four ways."""
    b = Builder((1, 6, 6))
    b.head(b.relu(b.max_pool(b.conv(0, 4), 3, 1, 1, low=4), 0), 3)
    plan = rectified(b.plan(6, "label"))
    assert [gate.ways for gate in plan.gates()][:2] == [3, 4]
    return plan


def constant_weights(plan, value):
    return {
        op.layer: LayerWeights(
            np.full(shape, value, np.int32), np.full(shape[:1], 5 * value, np.int32)
        )
        for op, shape in plan.linear()
    }


NETWORKS = (lambda: network("label"), rectified_network)


@pytest.fixture(
    scope="module",
    params=itertools.product(NETWORKS, IMAGES, WEIGHTS),
    ids=lambda given: str(given[1:]),
)
def session(request):
    build, image, value = request.param
    plan = build()
    session = Session(plan, constant_weights(plan, value), BATCH)
    session.run(IMAGES[image])
    return session


def payload(frame):
    return memoryview(frame)[HEADER_BYTES:]


def test_what_p0_receives_is_uniform(session):
    deltas = payload(session.offline)[BINDING_BYTES:]
    for gate in session.plan.gates():
        size, count = gate.offline_bytes(BATCH), BATCH * gate.count
        delta = many_from_planes(deltas[:size], gate.lanes, count, gate.width)
        deltas = deltas[size:]
        if count >= 5 * 256:
            assert words_look_uniform(delta, gate.width)
    assert not deltas
    assert words_look_uniform(np.frombuffer(payload(session.requests[0]), "<u4"))
    for gate, request in zip(session.plan.gates(), session.requests[1:], strict=True):
        count = BATCH * gate.count
        answer = Answer.parse(payload(request), gate, count)
        assert looks_uniform(together(answer.bits), 1 << gate.bits)
        if count >= 5 * 256:
            assert words_look_uniform(answer.values, gate.result_width)


def test_what_p1_receives_is_uniform(session):
    for gate, response in zip(session.plan.gates(), session.responses[:-1], strict=True):
        count = BATCH * gate.count
        masked = Masked.parse(payload(response), gate, count)
        assert looks_uniform(together(masked.bits), 1 << gate.bits)
        if count >= 5 * 256:
            assert words_look_uniform(masked.values, gate.width)
            for k, m in itertools.combinations(range(gate.ways - 1), 2):
                u, v = masked.values[k :: gate.ways - 1], masked.values[m :: gate.ways - 1]
                assert words_look_uniform(u - v, gate.width)


@pytest.mark.parametrize("value", WEIGHTS)
def test_the_opened_weights_are_uniform(value):
    b = Builder((8, 6, 6))
    b.head(b.relu(b.conv(0, 32)), 3)
    plan = b.plan(6)
    opening = Session(plan, constant_weights(plan, value)).opening
    assert words_look_uniform(np.frombuffer(opening[OPENING_HEADER:], "<u4"))


def test_the_last_share_is_uniform():
    """P0's share of the scores, and of the label, over many images; P1's shares alike."""
    for result in ("scores", "label"):
        b = Builder((1, 1, 1))
        b.head(b.relu(b.conv(0, 1, 1, 1, 0)), 3)
        plan = b.plan(6, result)
        session = Session(plan, constant_weights(plan, 7), 2048)
        session.run(np.zeros((2048, 1, 1, 1)))
        last = np.frombuffer(payload(session.responses[-1]), "<u4")
        assert words_look_uniform(last)


COUNT = 1 << 17
GATES = {
    "relu": Gate("relu", COUNT, 17, widen=True),
    "coarse": Gate("coarse", COUNT, 18, widen=True, coarse=3),
    "max": Gate("max", COUNT, 19),
    "max of three": Gate("max", COUNT, 19, ways=3),
    "coarse max of three": Gate("max", COUNT, 19, coarse=4, ways=3),
    "max of two and zero": Gate("pool", COUNT, 19, widen=True, ways=3),
    "max of three and zero": Gate("pool", COUNT, 19, widen=True, ways=4),
    "label": Gate("label", COUNT, payloads=2),
    "label of three": Gate("label", COUNT, payloads=2, ways=3),
}


class View:
    """All that the two parties of one gate hold, the values being the same for all results."""

    def __init__(self, gate, y):
        self.gate = gate
        corrections, keys = deal(gate, COUNT)
        evaluator = NumpyEvaluator()
        ours = [words(60 + i, COUNT) for i in range(gate.lanes)]
        values = [(y + 7 * i) % 2**32 for i in range(gate.lanes)]  # they fit every width
        theirs = [np.uint32(v) - y0 for v, y0 in zip(values, ours, strict=True)]
        self.delta, _ = client_prepare(gate, GateStreams(*SEEDS[1]), theirs)
        self.masked = server_open(gate, SEEDS[0], ours, self.delta, Cursor(keys), evaluator)
        mine, his = (Cursor(each) for each in corrections)
        self.answer = client_answer(gate, SEEDS[1], self.masked, his, Cursor(keys), evaluator)
        self.results = server_close(gate, SEEDS[0], self.masked, self.answer, mine)
        p0, p1 = (GateStreams(*given) for given in SEEDS)
        self.c0, self.c1 = (
            np.stack([streams.bits("c", COUNT, k) for k in range(gate.bits)])
            for streams in (p0, p1)
        )
        self.r0, self.r1 = (
            np.stack([streams.words("r", COUNT, lane) for lane in range(gate.lanes)])
            for streams in (p0, p1)
        )
        self.b0, self.b1 = self.masked.bits ^ self.c0, self.answer.bits ^ self.c1
        # of the factor p: P0's share as its seed gives it, P1's as it was dealt
        self.p0, self.p1 = p0.words("p", COUNT), dealt_items(corrections[1])[0]
        self.mask = p1.words("mask", COUNT)


def dealt_items(corrections):
    """A party's corrections, (items, COUNT), of two blocks of 2^16."""
    blocks = corrections.view("<u4").reshape(2, -1, COUNT // 2)
    return np.swapaxes(blocks, 0, 1).reshape(-1, COUNT)


@pytest.fixture(scope="module", params=[(g, y) for g in GATES for y in (-50_000, 0, 50_000)])
def view(request):
    gate, y = request.param
    if gate.startswith("coarse") and not y:
        y = 5  # of zero their rounding makes either bit, as often the one as the other
    return View(GATES[gate], y)


def test_p0_sees_nothing_jointly_with_what_it_knows(view):
    width, wide = view.gate.width, view.gate.result_width
    for bits in some_bits(view, view.b0, view.c0, view.answer.bits):
        check_view_of_p0(view, bits, width, wide)
    assert words_look_uniform(view.delta - view.r0, width)


def some_bits(view, *arrays):
    """All bits of each three comparisons: of more there would be too many cells."""
    for chosen in itertools.combinations(range(view.gate.bits), min(3, view.gate.bits)):
        yield [(array[number], 1) for array in arrays for number in chosen]


def check_view_of_p0(view, bits, width, wide):
    for answer, result in zip(view.answer.values, view.results, strict=True):
        assert looks_uniform(joint(*bits, (top(answer, 4, wide), 4)), 1 << len(bits) + 4)
        assert looks_uniform(joint(*bits, (top(result, 4, wide), 4)), 1 << len(bits) + 4)
        assert looks_uniform(
            joint(*bits, (top(answer, 2, wide), 2), (top(view.p0, 3), 3)), 1 << len(bits) + 5
        )
        assert words_look_uniform(answer, wide)
        assert words_look_uniform(result, wide)
    for opened, r0 in zip(view.masked.values, view.r0, strict=True):
        known = [(top(x, 2, width), 2) for x in (opened, r0)]
        answer = (top(view.answer.values[0], 2, wide), 2)
        assert looks_uniform(joint(*bits, *known), 1 << len(bits) + 4)
        assert looks_uniform(joint(*bits[:1], *known, answer), 1 << 7)


def test_p1_sees_nothing_jointly_with_what_it_knows(view):
    width, hidden = view.gate.width, view.masked.values - view.r1
    for bits in some_bits(view, view.b1, view.c1, view.masked.bits):
        assert looks_uniform(joint(*bits, (top(view.p1, 4), 4)), 1 << len(bits) + 4)
        for value, r1 in zip(view.masked.values, view.r1, strict=True):
            known = [(top(x, 2, width), 2) for x in (value, r1)]
            assert looks_uniform(joint(*bits, *known), 1 << len(bits) + 4)
            assert looks_uniform(joint(*bits, (top(value - r1, 4, width), 4)), 1 << len(bits) + 4)
    assert words_look_uniform(hidden, width)
    for u, v in itertools.combinations(hidden[: view.gate.ways - 1], 2):
        assert words_look_uniform(u - v, width)
        assert looks_uniform(joint((top(u, 6, width), 6), (top(v, 6, width), 6)), 1 << 12)


def test_the_tests_notice_what_is_not_masked(view):
    """Each party's view with one mask of the other's taken away is no longer uniform."""
    width, wide = view.gate.width, view.gate.result_width
    for number in range(view.gate.bits):
        assert not looks_uniform(view.answer.bits[number] ^ view.c1[number] ^ view.b0[number], 2)
        assert not looks_uniform(view.masked.bits[number] ^ view.c0[number] ^ view.b1[number], 2)
    for value, r0, r1 in zip(view.masked.values, view.r0, view.r1, strict=True):
        assert not words_look_uniform(value - r0 - r1, width)
    assert not words_look_uniform(view.results[0] + view.mask, wide)
    assert not words_look_uniform(view.p0 + view.p1), "the factor c itself"


def test_the_tests_notice_two_values_under_one_mask():
    """Of three ways u and v have masks of their own: else their difference were open."""
    view = View(GATES["max of three"], 50_000)
    shared = view.masked.values - view.r0 + view.r0[0]
    assert words_look_uniform(shared[0] - shared[1], 19)  # P1's halves still differ
    both = shared - view.r1 + view.r1[0]
    assert not words_look_uniform(both[0] - both[1], 19)


@pytest.mark.parametrize("party", [0, 1])
@pytest.mark.parametrize("name", GATES)
def test_the_dealers_corrections_are_uniform_to_whom_they_are_dealt(name, party):
    """Jointly with the party's seed: its own half of r, hidden bit, and each correction."""
    gate = GATES[name]
    streams = GateStreams(*SEEDS[party])
    r, c = streams.words("r", COUNT), streams.bits("c", COUNT)
    corrections, _ = deal(gate, COUNT)
    for values in dealt_items(corrections[party]):
        assert words_look_uniform(values)
        cells = joint((c, 1), (top(r, 4), 4), (top(values, 6), 6))
        assert looks_uniform(cells, 1 << 11)


@pytest.mark.parametrize("party", [0, 1])
@pytest.mark.parametrize("name", ["max", "max of three", "label of three"])
def test_the_tests_notice_a_correction_that_is_not_masked(name, party):
    """The other's share taken away, a party would see factors, and their products with r."""
    gate = GATES[name]
    other = GateStreams(*SEEDS[1 - party])
    corrections, _ = deal(gate, COUNT)
    items = dealt_items(corrections[party])
    for item, values in zip(dealt(gate, party), items, strict=True):
        assert not words_look_uniform(values + other.words(item.name, COUNT, item.lane))
