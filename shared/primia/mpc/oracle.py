"""The plan in plain integers: what the protocol must produce, and how near it came to overflow.

One party's worth of cleartext arithmetic in int64, wrapped to the ring where the protocol wraps.
Without masks the truncation is the floor; with the gates' masks r it is, bit for bit, what the
truncating ReLU yields: 0 or 1 unit above the floor. Pooling and the label's tournament are exact
(plans whose max gates drop low bits may pick a value up to 2^drop_low a level below the maximum).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primia import fixed_point
from primia.mpc.compile_maps import convolve, dense, max_pool, sum_pool
from primia.mpc.compiled import CompiledModel
from primia.mpc.plan import (
    RING_BITS,
    Add,
    Convolution,
    Dense,
    Flatten,
    MaxPool,
    Operation,
    Plan,
    Relu,
    SumPool,
)

Integers = NDArray[np.int64]
# layer, shape -> the gate's mask r, uniform in [0, 2^32)
Masks = Callable[[str, tuple[int, ...]], NDArray[Any]]

_MODULUS = 1 << RING_BITS
_HALF = 1 << (RING_BITS - 1)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """``values``: of every operation, signed ring integers (N, ...); ``peaks``: layer -> the
    largest true magnitude met there (for MaxPool and the final tournament: of a difference) as a
    fraction of 2^31. From 1 on the ring overflowed."""

    values: tuple[Integers, ...]
    peaks: dict[str, float]

    @property
    def scores(self) -> Integers:
        """(N, classes) at the plan's last scale."""
        return self.values[-1]

    @property
    def labels(self) -> Integers:
        """(N,); a tie goes to the lower index."""
        return np.asarray(np.argmax(self.scores, axis=1), np.int64)


def encode(plan: Plan, images: NDArray[Any]) -> Integers:
    """Images (N, C, H, W) to fixed point, to the nearest unit of 2^-activation_bits."""
    return fixed_point.encode(images, plan.activation_bits).view(np.int32).astype(np.int64)


def decode_scores(plan: Plan, scores: Integers) -> NDArray[np.float64]:
    return np.asarray(scores * 2.0 ** -plan.scales()[-1], np.float64)


def evaluate(model: CompiledModel, images: NDArray[Any], masks: Masks | None = None) -> Evaluation:
    """Run encoded images (N, C, H, W), integers, through the plan."""
    values: list[Integers] = [np.asarray(images, np.int64)]
    peaks: dict[str, float] = {}
    for op in model.plan.ops:
        inputs = [values[source] for source in op.sources]
        exact = _operation(op, inputs, model, masks)
        peaks[op.layer] = _peak(op, inputs[0], exact)
        values.append(to_ring(exact))
    if model.plan.result == "label":
        peaks["label"] = float(np.ptp(values[-1], axis=1).max(initial=0)) / _HALF
    return Evaluation(tuple(values[1:]), peaks)


def to_ring(exact: Integers) -> Integers:
    """The signed representative in [-2^31, 2^31)."""
    return np.asarray((exact + _HALF) % _MODULUS - _HALF)


def nearest(plan: Plan) -> Masks:
    """Masks of half a unit: every truncation rounds to the nearest, the mean of what the
    protocol's random masks give."""
    halves = {op.layer: (1 << op.shift) >> 1 for op in plan.ops if isinstance(op, Relu)}
    return lambda layer, shape: np.full(shape, halves[layer], np.int64)


def relu(y: Integers, op: Relu, r: NDArray[Any] | int = 0) -> Integers:
    """The gate of ``secure inference``: ReLU(y) >> shift for a mask r, from ŷ = y + r alone.

    b = [(ŷ >> s) - (r >> s) - 1 >= 0] on the window of the comparison; the result is
    (ŷ >> shift) - (r >> shift), plus 2^(32 - shift) where ŷ wrapped around, if b.
    """
    r = np.asarray(r, np.int64)
    masked = (y + r) % _MODULUS
    s, window = op.drop_low, 1 << (RING_BITS - op.drop_low - op.drop_high)
    positive = ((masked >> s) - (r >> s) - 1) % window < window // 2
    wrapped = (masked < _HALF) & (r >= _HALF)
    shifted = (masked >> op.shift) - (r >> op.shift) + (wrapped << (RING_BITS - op.shift))
    return np.where(positive, to_ring(shifted), 0)


def _operation(
    op: Operation, inputs: list[Integers], model: CompiledModel, masks: Masks | None
) -> Integers:
    x = inputs[0]
    if isinstance(op, Convolution | Dense):
        return _linear(op, x, model)
    if isinstance(op, Relu):
        return relu(x, op, masks(op.layer, x.shape) if masks else 0)
    if isinstance(op, MaxPool):
        return max_pool(x, op.kernel, op.stride, op.padding)
    if isinstance(op, SumPool):
        return sum_pool(x, op.kernel, op.stride, op.padding)
    if isinstance(op, Add):
        return (x << op.left_shift) + (inputs[1] << op.right_shift)
    assert isinstance(op, Flatten)
    return x.reshape(len(x), -1)


def _linear(op: Convolution | Dense, x: Integers, model: CompiledModel) -> Integers:
    weight = model.weights[op.layer].weight.astype(np.int64)
    bias = model.weights[op.layer].bias.astype(np.int64)
    if isinstance(op, Dense):
        return dense(x, weight) + bias
    product = convolve(x, weight, op.stride, op.padding, op.groups)
    return product + bias[:, None, None]


def _peak(op: Operation, x: Integers, exact: Integers) -> float:
    if isinstance(op, MaxPool):
        lowest = -max_pool(-x, op.kernel, op.stride, op.padding)
        return float((exact - lowest).max(initial=0)) / _HALF
    return float(np.abs(exact).max(initial=0)) / _HALF
