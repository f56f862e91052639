"""The plan in plain integers: what the protocol must produce, and how near it came to overflow.

One party's worth of cleartext arithmetic in int64, wrapped to the ring where the protocol wraps.
Narrowing rounds to the nearest and gates are exact; given P1's shares of the narrowed values and
the masks of coarse gates both do as the parties do, and the evaluation is theirs, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primia import fixed_point
from primia.mpc import oracle_gates
from primia.mpc.compile_maps import convolve, dense, max_pool, sum_pool
from primia.mpc.compiled import CompiledModel
from primia.mpc.plan import (
    RING_BITS,
    Add,
    Convolution,
    Dense,
    Flatten,
    MaxPool,
    Narrow,
    Operation,
    Plan,
    Relu,
    SumPool,
)

Integers = NDArray[np.int64]
# layer, shape -> P1's share of the value that a Narrow of this name reads, in [0, 2^32)
Shares = Callable[[str, tuple[int, ...]], NDArray[Any]]
# layer, number of its gate, shape of its opened values -> their masks r, in [0, 2^32)
Masks = Callable[[str, int, tuple[int, ...]], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """``values``: of every operation, signed ring integers (N, ...); ``peaks``: layer -> the
    largest true magnitude met there (for MaxPool and the final tournament: of a difference) as a
    fraction of half its ring. From 1 on the ring overflowed."""

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


@dataclass(frozen=True)
class Randomness:
    """What the parties' randomness does to the result, where it is given."""

    shares: Shares | None = None
    masks: Masks | None = None

    def share(self, op: Narrow, shape: tuple[int, ...]) -> NDArray[Any] | None:
        return self.shares(op.layer, shape) if self.shares and op.low else None

    def of_gates(self, op: Relu | MaxPool) -> oracle_gates.Masks | None:
        masks = self.masks
        return (lambda number, shape: masks(op.layer, number, shape)) if masks else None


def encode(plan: Plan, images: NDArray[Any]) -> Integers:
    """Images (N, C, H, W) to fixed point, to the nearest unit of 2^-activation_bits."""
    return fixed_point.encode(images, plan.activation_bits).view(np.int32).astype(np.int64)


def decode_scores(plan: Plan, scores: Integers) -> NDArray[np.float64]:
    return np.asarray(scores * 2.0 ** -plan.scales()[-1], np.float64)


def evaluate(
    model: CompiledModel,
    images: NDArray[Any],
    shares: Shares | None = None,
    masks: Masks | None = None,
) -> Evaluation:
    """Run encoded images (N, C, H, W), integers, through the plan."""
    values: list[Integers] = [np.asarray(images, np.int64)]
    peaks: dict[str, float] = {}
    widths = model.plan.widths()
    for op, width in zip(model.plan.ops, widths[1:], strict=True):
        inputs = [values[source] for source in op.sources]
        exact = _operation(op, inputs, model, Randomness(shares, masks))
        room = widths[op.source] if isinstance(op, MaxPool) else width
        peaks[op.layer] = _peak(op, inputs[0], exact) / 2.0 ** (room - 1)
        values.append(to_ring(exact, width))
    if model.plan.result == "label":
        peaks["label"] = float(np.ptp(values[-1], axis=1).max(initial=0)) / 2.0 ** (RING_BITS - 1)
    return Evaluation(tuple(values[1:]), peaks)


def to_ring(exact: Integers, width: int = RING_BITS) -> Integers:
    """The signed representative in [-2^(width - 1), 2^(width - 1))."""
    return oracle_gates.signed(exact, width)


def narrow(y: Integers, low: int, share: NDArray[Any] | None = None) -> Integers:
    """y over 2^low, rounded: to the nearest, or as the parties round with P1's share of y.

    P1 rounds its share down, P0 its own down and adds 1; each is exact in the smaller ring.
    """
    if not low:
        return y
    if share is None:
        return (y + (1 << (low - 1))) >> low
    theirs = np.asarray(share, np.int64)
    return np.asarray(((y - theirs) >> low) + 1 + (theirs >> low))


def _operation(
    op: Operation, inputs: list[Integers], model: CompiledModel, given: Randomness
) -> Integers:
    x = inputs[0]
    if isinstance(op, Convolution | Dense):
        return _linear(op, x, model)
    if isinstance(op, Narrow):
        return narrow(x, op.low, given.share(op, x.shape))
    if isinstance(op, Relu):
        return oracle_gates.relu(x, op, model.plan.widths()[op.source], given.of_gates(op))
    if isinstance(op, MaxPool):
        return oracle_gates.maxima(x, op, model.plan.widths()[op.source], given.of_gates(op))
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
        return float((exact - lowest).max(initial=0))
    return float(np.abs(exact).max(initial=0))
