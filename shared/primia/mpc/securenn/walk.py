"""P0's and P1's way through a plan: what is linear in the shares here, the rest by a ``Side``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from primia.mpc.operations import (
    Add,
    Convolution,
    Dense,
    Flatten,
    MaxPool,
    Narrow,
    Operation,
    Relu,
    Shape,
    SumPool,
)
from primia.mpc.plan import Plan
from primia.mpc.reduction import Reduction, reduction
from primia.mpc.securenn.gates import Party, select_positive
from primia.mpc.securenn.layout import pool_trees
from primia.mpc.securenn.ring64 import Words, truncate
from primia.mpc.securenn.wire import Talk


class Side(Protocol):
    """What P0 and P1 do differently."""

    @property
    def party(self) -> Party: ...

    def linear(self, op: Convolution | Dense, x: Words) -> Talk[Words]:
        """This side's share of the layer's result."""


def walk(plan: Plan, side: Side, image: Words) -> Talk[Words]:
    """From this side's share of the images, (N, C, H, W), to its share of the result:
    (N, classes), or (N,) for a label."""
    gates = itertools.count()
    last_use = {source: i for i, op in enumerate(plan.ops) for source in op.sources}
    values = {0: image}
    for i, op in enumerate(plan.ops):
        inputs = [values[source] for source in op.sources]
        values[i + 1] = yield from _apply(op, side, inputs, plan.shapes()[i + 1], gates)
        for source in op.sources:
            if last_use[source] == i:
                values.pop(source, None)
    scores = values[len(plan.ops)]
    if plan.result == "scores":
        return scores
    return (yield from _label(side, scores, gates))


def _apply(
    op: Operation, side: Side, inputs: list[Words], shape: Shape, gates: Iterator[int]
) -> Talk[Words]:
    x = inputs[0]
    match op:
        case Convolution() | Dense():
            return (yield from side.linear(op, x))
        case Narrow():
            return truncate(x, side.party.index, op.low)
        case Relu():
            return (yield from _relu(side, x, gates))
        case MaxPool():
            for axis, tree in zip((3, 2), pool_trees(op, x.shape[1:]), strict=True):
                (x,) = yield from _maxima(side, [x], axis, tree, gates)
            return (yield from _relu(side, x, gates)) if op.relu else x
        case Add():
            shifts = np.uint64(op.left_shift), np.uint64(op.right_shift)
            return (x << shifts[0]) + (inputs[1] << shifts[1])
        case SumPool():
            return _sum_pool(x, op)
        case Flatten():
            return x.reshape(len(x), *shape)


def _relu(side: Side, x: Words, gates: Iterator[int]) -> Talk[Words]:
    (y,) = yield from select_positive(side.party, next(gates), x.ravel(), [x.ravel()])
    return y.reshape(x.shape)


def _label(side: Side, scores: Words, gates: Iterator[int]) -> Talk[Words]:
    """The index of the largest score; the first of equals, as argmax."""
    classes = scores.shape[1]
    index = np.arange(classes, dtype=np.uint64) * np.uint64(1 - side.party.index)
    tree = reduction(classes, classes, 1, 0)
    indices = np.broadcast_to(index, scores.shape)
    _, label = yield from _maxima(side, [scores, indices], 1, tree, gates)
    return label.reshape(len(scores))


def _maxima(
    side: Side, bundle: Sequence[Words], axis: int, tree: Reduction, gates: Iterator[int]
) -> Talk[Sequence[Words]]:
    """Maxima of the first value's windows along an axis (algorithm 8, as a tree); the other values
    follow its choice. max(a, b) = b + [a >= b] (a - b): a tie takes a, the one that comes first."""
    bundle = [np.take(x, tree.first, axis) for x in bundle]
    for level in tree.levels:
        first, second = level.candidates
        right = [np.take(x, second, axis) for x in bundle]
        gaps = [np.take(x, first, axis) - b for x, b in zip(bundle, right, strict=True)]
        flat = [gap.ravel() for gap in gaps]
        chosen = yield from select_positive(side.party, next(gates), flat[0], flat)
        best = [b + c.reshape(b.shape) for b, c in zip(right, chosen, strict=True)]
        carried = [np.take(x, level.carried, axis) for x in bundle]
        bundle = [np.concatenate(pair, axis) for pair in zip(best, carried, strict=True)]
    return [np.take(x, tree.last, axis) for x in bundle]


def _sum_pool(x: Words, op: SumPool) -> Words:
    """Sums over windows of the zero-padded images."""
    (top, left), (down, across) = op.padding, op.stride
    padded = np.pad(x, ((0, 0), (0, 0), (top, top), (left, left)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, op.kernel, axis=(2, 3))
    return np.asarray(windows[:, :, ::down, ::across].sum(axis=(4, 5), dtype=np.uint64))
