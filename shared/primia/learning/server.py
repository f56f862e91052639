"""The owner's step from one global model to the next, given the opened mean of the sites' changes.

The mean Δ is all that secure aggregation opens, and all that these need: plain averaging (McMahan
et al., 2017), FedAvgM (Hsu et al., 2019), FedAdagrad, FedAdam and FedYogi (Reddi et al., Adaptive
Federated Optimization, ICLR 2021, algorithm 2). Parameters are stepped; buffers (BatchNorm's
statistics) are averages and always take Δ as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from primia.errors import LocalError
from primia.learning.config import ServerOptimiser
from primia.learning.layout import Vector


@dataclass
class Moments:
    """``first``: float32 (parameters,); ``second`` likewise, for the adaptive optimisers."""

    first: Vector
    second: Vector | None

    @classmethod
    def initial(cls, parameters: int, config: ServerOptimiser) -> Moments:
        """Zero, and v = τ²: the least that the paper allows."""
        first = np.zeros(parameters, np.float32)
        if not config.adaptive:
            return cls(first, None)
        return cls(first, np.full(parameters, config.tau**2, np.float32))

    def to_bytes(self) -> bytes:
        """Little-endian float32, one vector behind the other."""
        parts = [self.first] if self.second is None else [self.first, self.second]
        return b"".join(np.ascontiguousarray(part, "<f4").tobytes() for part in parts)

    @classmethod
    def from_bytes(cls, data: bytes, parameters: int, config: ServerOptimiser) -> Moments:
        if len(data) != 4 * parameters * (1 + config.adaptive):
            raise LocalError("The server optimiser's moments are not on the disk as they were.")
        values = np.frombuffer(data, "<f4").astype(np.float32)
        second = values[parameters:] if config.adaptive else None
        return cls(values[:parameters], second)


def step(
    weights: Vector, change: Vector, parameters: int, config: ServerOptimiser, moments: Moments
) -> None:
    """Move ``weights`` (values,) and ``moments`` in place; ``change``: the mean Δ, (values,), of
    which the first ``parameters`` belong to parameters."""
    weights[parameters:] += change[parameters:]
    delta = change[:parameters]
    moments.first *= config.momentum
    if config.kind == "fedavgm":
        moments.first += delta
        weights[:parameters] += np.float32(config.rate) * moments.first
        return
    moments.first += np.float32(1 - config.momentum) * delta
    second = _second(moments, delta, config)
    size = np.sqrt(second) + np.float32(config.tau)
    weights[:parameters] += np.float32(config.rate) * moments.first / size


def _second(moments: Moments, delta: Vector, config: ServerOptimiser) -> NDArray[np.float32]:
    """The line of algorithm 2 in which the three differ."""
    second = moments.second
    if second is None:
        raise LocalError(f"{config.kind} needs a second moment.")
    square = np.square(delta)  # (parameters,)
    rest = np.float32(1 - config.second_moment)
    if config.kind == "fedadagrad":
        second += square
    elif config.kind == "fedyogi":
        second -= rest * square * np.sign(second - square)
    else:
        second *= np.float32(config.second_moment)
        second += rest * square
    return second
