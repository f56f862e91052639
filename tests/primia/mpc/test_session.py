"""Whole sessions in one process, against plain integers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primia.fixed_point import encode
from primia.mpc.compile_pools import rectified
from primia.mpc.frames import HEADER_BYTES, offline_size, request_size, response_size
from primia.mpc.operations import MaxPool
from tests.support.inference import Builder, Session, plain, resnet18, signed, weights_for


def image_for(plan, batch, number=9):
    return signed(number, (batch, *plan.input_shape), 10) / 256


def fixed(plan, image):
    return encode(image, plan.activation_bits).view(np.int32).astype(np.int64)


def small_plan(result="scores", classes=3, size=8):
    b = Builder((2, size, size))
    x = b.relu(b.max_pool(b.conv(0, 4, 3, 1, 1)))
    y = b.conv(b.relu(b.conv(x, 4)), 4)
    x = b.relu(b.add(y, x, 0, 4))
    b.head(x, classes)
    return b.plan(8, result)


@pytest.mark.parametrize("batch", [1, 3])
def test_scores_equal_the_plain_integers_given_the_shares(batch):
    plan = small_plan()
    weights, image = weights_for(plan, 100), image_for(plan, batch)
    session = Session(plan, weights, batch)
    scores = session.run(image)
    expected = plain(plan, weights, fixed(plan, image), session.shares())
    assert scores.shape == (batch, 3)
    np.testing.assert_array_equal(scores * 2.0 ** plan.scales()[-1], expected)


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 11])
def test_labels_equal_the_plain_argmax(classes):
    plan = small_plan("label", classes)
    weights, image = weights_for(plan, 200), image_for(plan, 5)
    session = Session(plan, weights, 5)
    labels = session.run(image)
    expected = plain(plan, weights, fixed(plan, image), session.shares())
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, expected.argmax(axis=1))


@pytest.mark.parametrize("ties", [(0, 1), (1, 2), (0, 3), (2, 4), (0, 1, 2, 3, 4)])
def test_a_tie_goes_to_the_first_class(ties):
    plan = small_plan("label", 5)
    weights = weights_for(plan, 300)
    head = weights[plan.ops[-1].layer]
    head.weight[:] = 0
    head.bias[:] = -5
    head.bias[list(ties)] = 7
    assert Session(plan, weights).run(image_for(plan, 1)).tolist() == [ties[0]]


@st.composite
def plans(draw):
    """Random small networks with every operation the plan knows."""
    b = Builder((2, draw(st.integers(7, 12)), 9), draw(st.integers(2, 6)))
    groups, kernel = draw(st.sampled_from([1, 2])), draw(st.integers(1, 3))
    x = b.conv(0, 4, kernel, draw(st.integers(1, 2)), kernel // 2, groups)
    if draw(st.booleans()):
        x = b.max_pool(x, draw(st.integers(1, 3)), draw(st.integers(1, 2)), 0)
    x = b.relu(x, draw(st.integers(0, b.weight_bits)))
    if draw(st.booleans()):
        x = b.max_pool(x, 2, 1, 1)
    if draw(st.booleans()):
        y = b.conv(x, 4, 3, 1, 1)
        x = b.relu(b.add(y, x, 0, b.weight_bits))
    b.head(x, 3)
    return b.plan(6, draw(st.sampled_from(["scores", "label"])))


@settings(deadline=None, max_examples=25)
@given(plan=plans(), number=st.integers(0, 2**32), batch=st.integers(1, 2))
def test_random_plans_equal_plain_integers(plan, number, batch):
    weights, image = weights_for(plan, number, 4), image_for(plan, batch, number + 77) / 4
    session = Session(plan, weights, batch, root=number, mask=number + 1)
    result = session.run(image)
    expected = plain(plan, weights, fixed(plan, image), session.shares())
    if plan.result == "label":
        np.testing.assert_array_equal(result, expected.argmax(axis=1))
    else:
        np.testing.assert_array_equal(result, expected / 2.0 ** plan.scales()[-1])


def test_every_message_has_its_stated_size():
    plan = small_plan("label", 5)
    session = Session(plan, weights_for(plan, 1), 2)
    session.run(image_for(plan, 2))
    assert len(session.requests) == plan.requests == len(plan.gates()) + 1
    assert len(session.offline) == offline_size(plan, 2)
    for i, (request, response) in enumerate(zip(session.requests, session.responses, strict=True)):
        assert len(request) == request_size(plan, 2, i)
        assert len(response) == response_size(plan, 2, i)
    bill = plan.bill(2)
    assert sum(map(len, session.requests)) == bill.request_bytes + HEADER_BYTES * bill.requests
    assert sum(map(len, session.responses)) == bill.response_bytes + HEADER_BYTES * bill.requests


def test_resnet_18_takes_20_requests():
    plan = resnet18(32)
    weights, image = weights_for(plan, 5, 12), image_for(plan, 1)
    session = Session(plan, weights)
    scores = session.run(image)
    assert len(session.requests) == plan.requests == 20
    expected = plain(plan, weights, fixed(plan, image), session.shares())
    assert np.abs(expected).max() > 2**20  # the values did not die away on their way
    np.testing.assert_array_equal(scores * 2.0 ** plan.scales()[-1], expected)


def test_rounding_costs_little():
    """Against rounding to the nearest everywhere: within 0.01 of the scores."""
    plan = resnet18(32)
    weights, image = weights_for(plan, 5, 12), image_for(plan, 1)
    scores = Session(plan, weights).run(image)
    nearest = plain(plan, weights, fixed(plan, image)) / 2.0**25
    assert np.abs(scores - nearest).max() < 0.01


def test_messages_take_no_more_bits_than_their_rings():
    plan = resnet18(224)
    assert plan.requests == 20
    assert sum(gate.comparisons for gate in plan.gates()) == 3_512_320
    relus = [gate for gate in plan.gates() if gate.widen]
    pools = [gate for gate in plan.gates() if not gate.widen]
    assert [len(relus), len(pools)] == [17, 2]
    for gate in relus:  # v and delta of 17 bits, m of 32, d and e
        assert gate.width == 17
        online = gate.request_bytes(1) + gate.response_bytes(1)
        assert 8 * online == gate.count * (17 + 32 + 2)
        assert 8 * gate.offline_bytes(1) == gate.count * 17
    for gate in pools:  # two v and deltas of 17 bits, m of 17, three d and e
        assert gate.ways == 3
        online = gate.request_bytes(1) + gate.response_bytes(1)
        assert 8 * online == gate.count * (2 * 17 + 17 + 6)
        assert 8 * gate.offline_bytes(1) == gate.count * 2 * 17
    bill = plan.bill(1)
    assert bill.request_bytes + bill.response_bytes < 16e6
    assert bill.request_bytes + bill.response_bytes + bill.offline_bytes < 22e6


@pytest.mark.parametrize("kernel", [(2, 2), (3, 3), (1, 3), (3, 1), (5, 2), (4, 7)])
def test_a_pooling_that_takes_the_relu_equals_the_plain_one(kernel):
    """A request less than with a gate of its own, whatever stands at the borders."""
    b = Builder((1, 12, 11))
    padding = kernel[0] // 2, kernel[1] // 2
    cut = b.narrow(b.conv(0, 2), 4)
    b.ops.append(MaxPool("pool", cut, kernel, (2, 2), padding))
    b.shapes.append(b.ops[-1].shape(b.shapes[cut]))
    b.head(b.relu(len(b.ops), 0), 3)
    apart = b.plan(6)
    plan = rectified(apart)
    assert plan.requests == apart.requests - 1
    weights, image = weights_for(plan, sum(kernel)), image_for(plan, 2, sum(kernel))
    session = Session(plan, weights, 2)
    scores = session.run(image)
    expected = plain(plan, weights, fixed(plan, image), session.shares())
    np.testing.assert_array_equal(scores * 2.0 ** plan.scales()[-1], expected)


def test_a_pooling_of_any_size_equals_the_plain_maximum():
    """Trees of two- and three-way gates of the least depth, with borders of fewer candidates."""
    for kernel, gates in [(2, 2), (3, 2), (4, 4), (5, 4), (7, 4), (9, 4), (10, 6)]:
        b = Builder((1, 12, 11))
        x = b.relu(b.max_pool(b.conv(0, 2), kernel, 2, kernel // 2))
        b.head(x, 3)
        plan = b.plan(6)
        assert plan.requests == gates + 2
        weights, image = weights_for(plan, kernel), image_for(plan, 2, kernel)
        session = Session(plan, weights, 2)
        scores = session.run(image)
        expected = plain(plan, weights, fixed(plan, image), session.shares())
        np.testing.assert_array_equal(scores * 2.0 ** plan.scales()[-1], expected)
