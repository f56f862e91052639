"""Nonlinear operations in plain integers: exact, or with the masks that make them coarse.

A mask r is a gate's, uniform in [0, 2^32), in the order of the gate's results; where it opens two
values there are two, one before the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primia.mpc.compile_maps import max_pool
from primia.mpc.gate_shape import WAYS, Gate
from primia.mpc.operations import MaxPool, Relu
from primia.mpc.reduction import Reduction

Integers = NDArray[np.int64]
# number of the operation's gate, shape of its values, (N, ...) or (2, N, ...) -> their masks r
Masks = Callable[[int, tuple[int, ...]], NDArray[Any]]


def signed(values: Integers, width: int) -> Integers:
    """The representative in [-2^(width - 1), 2^(width - 1))."""
    half = 1 << (width - 1)
    return np.asarray((values + half) % (1 << width) - half)


def positive(y: Integers, gate: Gate, r: NDArray[Any]) -> NDArray[np.bool_]:
    """Where the gate finds y positive: from y + r and r without their coarse bits."""
    size, c = 1 << gate.width, gate.coarse
    r = np.asarray(r, np.int64) % size
    opened = (y + r + gate.centre) % size
    rounded_down = (opened >> c) - (r >> c) - (1 if c else 0)
    return signed(rounded_down, gate.width - c) >= 0


def selected(values: list[Integers], gate: Gate, r: NDArray[Any]) -> Integers:
    """What the gate selects of y, or of u and v; ``r`` in the shape of y, or of both stacked.

    Of four ways it is exact.
    """
    if gate.ways == 2:
        return np.where(positive(values[0], gate, r), values[0], 0)
    if gate.ways > WAYS:
        return np.asarray(np.maximum(np.max(values, axis=0), 0), np.int64)
    (u, v), masks = values, np.asarray(r, np.int64)
    p, q = positive(u, gate, masks[0]), positive(v, gate, masks[1])
    s = positive(u - v, gate, masks[0] - masks[1])
    return np.where(s, np.where(p, u, 0), np.where(q, v, 0))


def relu(x: Integers, op: Relu, width: int, masks: Masks | None) -> Integers:
    (gate,) = op.gates(x.shape[1:], width)
    if masks is None or not gate.coarse:
        return np.maximum(x, 0)
    return selected([x], gate, masks(0, x.shape))


def maxima(x: Integers, op: MaxPool, width: int, masks: Masks | None) -> Integers:
    """As the parties do it: rows, then columns, two or three at a time."""
    if masks is None or not op.coarse:
        largest = max_pool(x, op.kernel, op.stride, op.padding)
        return np.maximum(largest, 0) if op.relu else largest
    gates = iter(enumerate(op.gates(x.shape[1:], width)))
    for axis, tree in zip((3, 2), op.trees(*x.shape[2:]), strict=True):
        x = _axis_maxima(x, axis, tree, gates, masks)
    return x


def _axis_maxima(x: Integers, axis: int, tree: Reduction, gates: Any, masks: Masks) -> Integers:
    x = np.take(x, tree.first, axis)
    for level in tree.levels:
        number, gate = next(gates)
        candidates = [np.take(x, index, axis) for index in level.candidates]
        if gate.ways > level.ways:  # and takes zero for one of them
            stacked = (len(candidates), *candidates[0].shape)
            return selected(candidates, gate, masks(number, stacked))
        *others, last = candidates
        differences = [signed(other - last, gate.width) for other in others]
        shape = last.shape if gate.ways == 2 else (2, *last.shape)
        best = last + selected(differences, gate, masks(number, shape))
        x = np.concatenate([best, np.take(x, level.carried, axis)], axis)
    return np.take(x, tree.last, axis)
