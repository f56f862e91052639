"""Random small networks, compiled: SecureNN's scores against the plan's in plain integers."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from primia.mpc import oracle
from primia.mpc.compile import compile_model
from tests.support.networks import images, networks, settle
from tests.support.securenn import Session


@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(network=networks(), number=st.integers(0, 1000))
def test_random_networks(network, number):
    module, shape = network
    settle(module, shape, seed=number)
    model = compile_model(module, shape, calibration=images(shape, 8, seed=number))
    batch = images(shape, 2, seed=number + 1)
    found = oracle.evaluate(model, oracle.encode(model.plan, batch))
    scores = Session(model.plan, model.weights, 2).run(batch)
    expected = oracle.decode_scores(model.plan, found.scores)
    # Roundings differ by a unit of 2^-10 a ReLU.
    assert np.abs(scores - expected).max() < 0.01 * max(1.0, np.abs(expected).max())
