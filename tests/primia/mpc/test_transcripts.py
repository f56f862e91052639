"""What each party sees is uniform, whatever the image, the weights and the values are.

Chi-square tests against the uniform distribution at a false-alarm rate of 1e-6 each; all seeds are
fixed, so a run tells the same every time. Controls show that the tests notice what they must.
"""

import numpy as np
import pytest
from scipy.stats import chi2

from primia.fss.evaluation import NumpyEvaluator
from primia.mpc.frames import BINDING_BYTES, HEADER_BYTES, Choices, Masked, many_from_planes
from primia.mpc.gates import client_answer, client_prepare, server_close, server_open
from primia.mpc.masks import GateStreams
from primia.mpc.material import Cursor
from primia.mpc.opening import HEADER_BYTES as OPENING_HEADER
from primia.mpc.operations import Gate
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


def constant_weights(plan, value):
    return {
        op.layer: LayerWeights(
            np.full(shape, value, np.int32), np.full(shape[:1], 5 * value, np.int32)
        )
        for op, shape in plan.linear()
    }


@pytest.fixture(scope="module", params=[(i, w) for i in IMAGES for w in WEIGHTS], ids=str)
def session(request):
    image, value = request.param
    plan = network("label")
    session = Session(plan, constant_weights(plan, value), BATCH)
    session.run(IMAGES[image])
    return session


def payload(frame):
    return memoryview(frame)[HEADER_BYTES:]


def test_what_p0_receives_is_uniform(session):
    deltas = payload(session.offline)[BINDING_BYTES:]
    for gate in session.plan.gates():
        size, count = gate.offline_bytes(BATCH), BATCH * gate.comparisons
        delta = many_from_planes(deltas[:size], gate.payloads, count, gate.width)
        deltas = deltas[size:]
        if count >= 5 * 256:
            assert words_look_uniform(delta, gate.width)
    assert not deltas
    assert words_look_uniform(np.frombuffer(payload(session.requests[0]), "<u4"))
    for gate, request in zip(session.plan.gates(), session.requests[1:], strict=True):
        count = BATCH * gate.comparisons
        choices = Choices.parse(payload(request), gate, count)
        assert looks_uniform(choices.bits, 2)
        if count >= 5 * 256:
            width = gate.result_width
            assert all(words_look_uniform(choices.pairs[:, j], width) for j in (0, 1))
            assert words_look_uniform(choices.pairs[:, 1] - choices.pairs[:, 0], width)


def test_what_p1_receives_is_uniform(session):
    for gate, response in zip(session.plan.gates(), session.responses[:-1], strict=True):
        count = BATCH * gate.comparisons
        masked = Masked.parse(payload(response), gate, count)
        assert looks_uniform(masked.bits, 2)
        if count >= 5 * 256:
            assert words_look_uniform(masked.values, gate.width)


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
    "label": Gate("label", COUNT, payloads=2),
}


class View:
    """All that the two parties of one gate hold, all values y being the same."""

    def __init__(self, gate, y):
        self.gate = gate
        corrections, keys = deal(gate, COUNT)
        evaluator = NumpyEvaluator()
        ours = [words(60 + i, COUNT) for i in range(gate.payloads)]
        theirs = [np.uint32(y % 2**32) - y0 for y0 in ours]  # fits every width
        self.delta, _ = client_prepare(gate, GateStreams(*SEEDS[1]), theirs)
        opened = server_open(gate, SEEDS[0], ours, self.delta, Cursor(keys), evaluator)
        self.masked, self.b0 = opened
        self.choices = client_answer(gate, SEEDS[1], self.masked, Cursor(keys), evaluator)
        self.results = server_close(
            gate, SEEDS[0], self.masked, self.b0, self.choices, Cursor(corrections)
        )
        p0, p1 = (GateStreams(*given) for given in SEEDS)
        self.choice, self.flag = p0.bits("choice", COUNT), p1.bits("flag", COUNT)
        self.r0, self.r1 = p0.words("r", COUNT), p1.words("r", COUNT)
        self.pads = [p1.words(f"pad{j}", COUNT) for j in (0, 1)]
        self.b1 = self.choices.bits ^ self.flag


@pytest.fixture(scope="module", params=[(g, y) for g in GATES for y in (-50_000, 0, 50_000)])
def view(request):
    gate, y = request.param
    return View(GATES[gate], y)


def test_p0_sees_nothing_jointly_with_what_it_knows(view):
    pad = np.where(view.choice, view.pads[1], view.pads[0])
    pair = view.choices.pairs[0]
    own, other = np.where(view.b0, pair[::-1], pair) - pad
    bits = [(view.b0, 1), (view.choice, 1), (view.choices.bits, 1)]
    width, wide = view.gate.width, view.gate.result_width
    results = [(top(x, 2, wide), 2) for x in (own, other, pad)]
    opened = [(top(x, 2, width), 2) for x in (view.masked.values[0], view.r0)]
    assert looks_uniform(joint(*bits, *results, *opened), 1 << 13)
    assert looks_uniform(joint(*bits, (top(view.results[0], 8, wide), 8)), 1 << 11)
    assert words_look_uniform(own, wide)
    assert words_look_uniform(other, wide)
    assert words_look_uniform(view.delta - view.r0, width)
    assert words_look_uniform(view.results[0], wide)


def test_p1_sees_nothing_jointly_with_what_it_knows(view):
    bits = [(view.b1, 1), (view.flag, 1), (view.masked.bits, 1)]
    width, opened = view.gate.width, view.masked.values[0]
    words_ = [(top(x, 2, width), 2) for x in (opened, view.r1)]
    words_ += [(top(pad, 2), 2) for pad in view.pads]
    assert looks_uniform(joint(*bits, *words_), 1 << 11)
    assert words_look_uniform(opened - view.r1, width)
    assert looks_uniform(joint(*bits, (top(opened - view.r1, 6, width), 6)), 1 << 9)


def test_the_tests_notice_what_is_not_masked(view):
    """Each party's view with one mask of the other's taken away is no longer uniform."""
    bit = view.choices.bits ^ view.flag ^ view.b0
    assert not looks_uniform(bit, 2)
    assert not looks_uniform(view.masked.bits ^ view.choice ^ view.b1, 2)
    width, wide = view.gate.width, view.gate.result_width
    assert not words_look_uniform(view.masked.values[0] - view.r0 - view.r1, width)
    mask = GateStreams(*SEEDS[1]).words("mask", COUNT)
    assert not words_look_uniform(view.results[0] + mask, wide)


@pytest.mark.parametrize("name", GATES)
def test_the_dealers_corrections_are_uniform_to_p0(name):
    """Jointly with P0's seed: its own r0, choice bit, and each correction."""
    gate = GATES[name]
    streams = [GateStreams(*given) for given in SEEDS]
    r0, choice = streams[0].words("r", COUNT), streams[0].bits("choice", COUNT)
    corrections, _ = deal(gate, COUNT)
    blocks = corrections.view("<u4").reshape(2, -1, COUNT // 2)  # two blocks of 2^16
    for item in np.swapaxes(blocks, 0, 1):
        values = item.ravel()
        assert words_look_uniform(values)
        cells = joint((choice, 1), (top(r0, 4), 4), (top(values, 6), 6))
        assert looks_uniform(cells, 1 << 11)
