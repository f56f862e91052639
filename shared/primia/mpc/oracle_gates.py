"""Nonlinear operations in plain integers: exact, or with the masks that make them coarse.

A mask r is a gate's, uniform in [0, 2^32), in the order of the gate's comparisons.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primia.mpc.compile_maps import max_pool
from primia.mpc.operations import Gate, MaxPool, Relu
from primia.mpc.reduction import Reduction, reduction

Integers = NDArray[np.int64]
# number of the operation's gate, shape of its values (N, ...) -> its mask r
Masks = Callable[[int, tuple[int, ...]], NDArray[Any]]


def signed(values: Integers, width: int) -> Integers:
    """The representative in [-2^(width - 1), 2^(width - 1))."""
    half = 1 << (width - 1)
    return np.asarray((values + half) % (1 << width) - half)


def selected(y: Integers, gate: Gate, r: NDArray[Any]) -> Integers:
    """y where the gate finds it positive, else 0: from y + r and r without their coarse bits."""
    size, c = 1 << gate.width, gate.coarse
    r = np.asarray(r, np.int64) % size
    opened = (y + r + gate.centre) % size
    rounded_down = (opened >> c) - (r >> c) - (1 if c else 0)
    return np.where(signed(rounded_down, gate.width - c) >= 0, y, 0)


def relu(x: Integers, op: Relu, width: int, masks: Masks | None) -> Integers:
    (gate,) = op.gates(x.shape[1:], width)
    if masks is None or not gate.coarse:
        return np.maximum(x, 0)
    return selected(x, gate, masks(0, x.shape))


def maxima(x: Integers, op: MaxPool, width: int, masks: Masks | None) -> Integers:
    """As the parties do it: rows, then columns, pair by pair."""
    if masks is None or not op.coarse:
        return max_pool(x, op.kernel, op.stride, op.padding)
    gates = iter(enumerate(op.gates(x.shape[1:], width)))
    for axis in (3, 2):
        at = axis - 2
        tree = reduction(x.shape[axis], op.kernel[at], op.stride[at], op.padding[at])
        x = _axis_maxima(x, axis, tree, gates, masks)
    return x


def _axis_maxima(x: Integers, axis: int, tree: Reduction, gates: Any, masks: Masks) -> Integers:
    x = np.take(x, tree.first, axis)
    for level in tree.levels:
        number, gate = next(gates)
        left, right = np.take(x, level.left, axis), np.take(x, level.right, axis)
        difference = signed(left - right, gate.width)
        best = right + selected(difference, gate, masks(number, difference.shape))
        x = np.concatenate([best, np.take(x, level.carried, axis)], axis)
    return np.take(x, tree.last, axis)
