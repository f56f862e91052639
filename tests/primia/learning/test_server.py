import numpy as np
import pytest

from primia.errors import LocalError
from primia.learning.config import ServerOptimiser
from primia.learning.server import Moments, step

DELTAS = np.array([[0.5, -0.2, 0.1], [0.4, 0.3, -0.1]], np.float32)  # the last one is a buffer


def _run(config: ServerOptimiser) -> np.ndarray:
    weights = np.zeros(3, np.float32)
    moments = Moments.initial(2, config)
    for delta in DELTAS:
        step(weights, delta, 2, config, moments)
        moments = Moments.from_bytes(moments.to_bytes(), 2, config)
    return weights


def _paper(config: ServerOptimiser) -> np.ndarray:
    """Reddi et al. (2021), algorithm 2, value by value in double precision."""
    out = []
    for column in DELTAS[:, :2].astype(float).T:
        x, m, v = 0.0, 0.0, config.tau**2
        for delta in column:
            m = config.momentum * m + (1 - config.momentum) * delta
            if config.kind == "fedadagrad":
                v = v + delta**2
            elif config.kind == "fedyogi":
                v = v - (1 - config.second_moment) * delta**2 * np.sign(v - delta**2)
            else:
                v = config.second_moment * v + (1 - config.second_moment) * delta**2
            x = x + config.rate * m / (np.sqrt(v) + config.tau)
        out.append(x)
    return np.array([*out, DELTAS[:, 2].sum()])


@pytest.mark.parametrize("kind", ["fedadagrad", "fedadam", "fedyogi"])
def test_the_adaptive_optimisers_are_the_papers(kind: str) -> None:
    config = ServerOptimiser.parse({"kind": kind, "learning_rate": 0.3, "tau": 0.01})
    np.testing.assert_allclose(_run(config), _paper(config), rtol=1e-5)


def test_momentum_of_the_mean() -> None:
    config = ServerOptimiser(kind="fedavgm", momentum=0.5, learning_rate=2)
    first = DELTAS[0, :2]
    second = 0.5 * first + DELTAS[1, :2]
    np.testing.assert_allclose(_run(config)[:2], 2 * (first + second), rtol=1e-6)
    assert _run(config)[2] == pytest.approx(0)


def test_momentum_of_nothing_is_averaging() -> None:
    config = ServerOptimiser(kind="fedavgm", momentum=0)
    np.testing.assert_allclose(_run(config), DELTAS.sum(axis=0), atol=1e-7)


def test_moments_that_were_cut_short_are_refused() -> None:
    config = ServerOptimiser(kind="fedadam")
    data = Moments.initial(4, config).to_bytes()
    with pytest.raises(LocalError, match="moments"):
        Moments.from_bytes(data[:-4], 4, config)
