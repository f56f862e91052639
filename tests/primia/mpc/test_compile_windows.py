"""Calibrated windows: fewer bits compared, the parties as the oracle says, close to the model."""

import numpy as np
import pytest

from primia.errors import InvalidInput
from primia.mpc.compile import compile_model
from primia.mpc.compile_windows import MAX_BITS, MIN_IMAGES, RELU_BITS, agreement, calibrate
from primia.mpc.oracle import decode_scores, encode, evaluate
from primia.mpc.plan import MaxPool, Narrow, Plan, Relu
from tests.support.inference import Session
from tests.support.networks import float_scores, images, residual, settle, vgg

SHAPE = (3, 24, 24)


@pytest.fixture(scope="module")
def module():
    return settle(residual(), SHAPE)


@pytest.fixture(scope="module")
def exact(module):
    return compile_model(module, SHAPE)


@pytest.fixture(scope="module")
def calibrated(module):
    model = compile_model(module, SHAPE, rectify_pools=False)
    return calibrate(model, images(SHAPE, 16, seed=1))


def test_comparisons_look_at_few_bits(exact, calibrated):
    for gate in calibrated.plan.gates():
        assert gate.width - gate.coarse <= (RELU_BITS if gate.widen else MAX_BITS)
        assert gate.ways == 2
        assert gate.width < 18
    assert calibrated.plan.bill(1).key_bytes < 0.5 * exact.plan.bill(1).key_bytes
    assert [gate.ways for gate in exact.plan.gates() if gate.ways > 2] == [3, 4]
    assert calibrated.plan.requests == exact.plan.requests + 3  # of the pool two, its ReLU's own
    assert calibrated.plan.scales()[-1] == exact.plan.scales()[-1]
    assert Plan.parse(calibrated.plan.to_json()) == calibrated.plan
    assert exact.plan.digest() != calibrated.plan.digest()


def test_windows_hold_what_was_met_with_a_margin(exact, calibrated):
    batch = images(SHAPE, 16, seed=1)
    found = evaluate(calibrated, encode(calibrated.plan, batch))
    for op in calibrated.plan.ops:
        if isinstance(op, Narrow | MaxPool):
            assert 0.2 < found.peaks[op.layer] <= 1 / 1.5 + 0.01
    nearest = evaluate(exact, encode(exact.plan, batch))
    np.testing.assert_array_equal(found.scores, nearest.scores)  # the values are as they were


def session_and_oracle(model, batch):
    session = Session(model.plan, model.weights, len(batch))
    result = session.run(batch)
    roundings = [op.layer for op in model.plan.ops if isinstance(op, Narrow) and op.low]
    shares, masks = dict(zip(roundings, session.shares(), strict=True)), session.masks()
    expected = evaluate(
        model,
        encode(model.plan, batch),
        lambda layer, shape: shares[layer].reshape(shape),
        lambda layer, number, shape: masks[layer, number].reshape(shape),
    )
    return result, expected


def test_the_parties_compute_what_the_oracle_says(calibrated):
    assert any(isinstance(op, MaxPool) and op.coarse for op in calibrated.plan.ops)
    assert any(isinstance(op, Relu) and op.coarse for op in calibrated.plan.ops)
    scores, expected = session_and_oracle(calibrated, images(SHAPE, 3, seed=5))
    np.testing.assert_array_equal(scores, decode_scores(calibrated.plan, expected.scores))


def test_the_result_stays_near_the_model(module, calibrated):
    batch = images(SHAPE, 6, seed=7)
    scores = Session(calibrated.plan, calibrated.weights, 6).run(batch)
    assert np.abs(scores - float_scores(module, batch)).max() < 0.05


def test_a_model_without_norms_is_calibrated_too():
    shape = (3, 16, 16)
    module = settle(vgg(norm=False, size=16), shape)
    batch = images(shape, 16, seed=2)
    model = calibrate(compile_model(module, shape, result="label", calibration=batch), batch)
    labels, expected = session_and_oracle(model, images(shape, 3, seed=9))
    np.testing.assert_array_equal(labels, expected.labels)


def test_agreement_is_measured_with_the_parties_randomness(module, exact, calibrated):
    batch = images(SHAPE, 12, seed=3)
    wanted = float_scores(module, batch)
    near, coarse = agreement(exact, batch, wanted), agreement(calibrated, batch, wanted)
    assert near.images == coarse.images == 12
    assert near.same_labels == 1.0
    assert 0.0 < near.largest_difference < 0.01
    assert 0.0 < coarse.largest_difference < 0.05
    shifted = agreement(exact, batch, wanted + np.array([1.0, 0.0, 0.0]))
    assert 0.99 < shifted.largest_difference < 1.01


def test_too_few_images_are_refused(exact):
    with pytest.raises(InvalidInput, match="8 images or more, not 7"):
        calibrate(exact, images(SHAPE, MIN_IMAGES - 1))
