"""Sessions of both parties on compiled torch models, against the oracle and the float model.

Given P1's shares of what is narrowed the oracle is exact, so the parties must agree with it in
every bit; and they must stay close to the float model.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from primia.mpc.compile import compile_model
from primia.mpc.oracle import decode_scores, encode, evaluate
from primia.mpc.plan import MaxPool, Narrow, Relu
from tests.support.inference import Session
from tests.support.networks import (
    LeNet,
    float_scores,
    images,
    networks,
    residual,
    settle,
    small_cnn,
    vgg,
)

CLOSE = 0.01

NAMED = {
    "residual": (residual, (3, 24, 24)),
    "residual, not square": (residual, (1, 32, 20)),
    "vgg": (lambda: vgg(size=16), (3, 16, 16)),
    "small cnn": (small_cnn, (1, 12, 12)),
    "lenet": (lambda: LeNet(size=16), (1, 16, 16)),
}


def oracle_shares(session):
    """P1's share of every value that is rounded, by layer, for the oracle."""
    names = [op.layer for op in session.plan.ops if isinstance(op, Narrow) and op.low]
    found = dict(zip(names, session.shares(), strict=True))
    return lambda layer, shape: found[layer].reshape(shape)


def agree(model, batch, root=1):
    """Run a session; its result must be the oracle's, bit for bit. Returns it."""
    session = Session(model.plan, model.weights, len(batch), root=root)
    result = session.run(batch)
    expected = evaluate(model, encode(model.plan, batch), oracle_shares(session))
    if model.plan.result == "label":
        np.testing.assert_array_equal(result, expected.labels)
    else:
        np.testing.assert_array_equal(result, decode_scores(model.plan, expected.scores))
    assert len(session.requests) == len(session.responses) == model.plan.requests
    return result


def settled(name):
    build, shape = NAMED[name]
    module = build() if shape[0] == 3 or name in ("small cnn", "lenet") else build(shape[0])
    return settle(module, shape), shape


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("result", ["scores", "label"])
def test_the_parties_compute_what_the_oracle_says(name, result):
    module, shape = settled(name)
    batch = images(shape, 2, seed=5)
    model = compile_model(module, shape, result=result)
    found = agree(model, batch)
    wanted = float_scores(module, batch)
    if result == "label":
        gaps = np.sort(wanted, axis=1)[:, -1] - np.sort(wanted, axis=1)[:, -2]
        clear = gaps > 2 * CLOSE
        assert clear.any()
        np.testing.assert_array_equal(found[clear], wanted.argmax(axis=1)[clear])
    else:
        assert np.abs(found - wanted).max() < CLOSE


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    network=networks(),
    seed=st.integers(0, 1000),
    result=st.sampled_from(["scores", "label"]),
    batch=st.integers(1, 2),
)
def test_random_networks_agree_bit_for_bit(network, seed, result, batch):
    module, shape = network
    model = compile_model(settle(module, shape, seed), shape, result=result)
    agree(model, images(shape, batch, seed), root=seed + 1)


def test_extreme_images_agree_bit_for_bit():
    """Constant and saturated images: zeros at many gates, and the largest activations."""
    shape = (1, 12, 12)
    model = compile_model(settle(small_cnn(), shape), shape)
    flat = np.zeros((4, *shape), np.float32)
    flat[1], flat[2] = 4.0, -4.0
    flat[3] = np.where(np.indices(shape).sum(axis=0) % 2, 4.0, -4.0)
    agree(model, flat)


def test_shares_differ_between_deals_and_results_by_rounding_only():
    shape = (3, 24, 24)
    model = compile_model(settle(residual(), shape), shape)
    batch = images(shape, 1)
    results = [
        Session(model.plan, model.weights, root=root, mask=root).run(batch) for root in (1, 2, 3)
    ]
    assert not np.array_equal(results[0], results[1])
    assert np.ptp(results, axis=0).max() < CLOSE


def test_gates_see_no_more_than_the_bits_of_their_results():
    model = compile_model(settle(residual(), (3, 24, 24)), (3, 24, 24))
    plan, bits = model.plan, model.plan.activation_bits
    for op in plan.ops:
        if isinstance(op, Relu | MaxPool):
            spare = 1 if plan.scales()[op.source] < bits else 0  # a later average makes up for it
            assert plan.scales()[op.source] == bits - spare
            assert plan.widths()[op.source] < 20
