"""One way through a plan, for every role: P0 online, P1 offline, and the dealer.

All three hold a share of every value (the dealer: what P1's seed tells of P1's share, else None).
What is linear in the shares happens here, each role on its own; a ``Side`` does what differs. The
walk is a generator: it yields what a gate sends and receives what a gate gets, if anything.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from primia.mpc.deferred import V, lifted
from primia.mpc.gate_shape import Gate, tournament_tree
from primia.mpc.operations import (
    Add,
    Convolution,
    Dense,
    Flatten,
    Linear,
    MaxPool,
    Narrow,
    Operation,
    Relu,
    Shape,
    SumPool,
)
from primia.mpc.plan import Plan
from primia.mpc.reduction import Level, Reduction
from primia.ring import Ring, Window, sum_pool

Value = Ring | None
Numbered = Iterator[tuple[int, Gate]]


class Side(Protocol[V]):
    """What a role does by itself; batches come first, gates take and return flat values.

    V: known shares, at hand (``Ring``) or ``Deferred``.
    """

    def linear(self, op: Linear, x: V | None, before: Shape, after: Shape) -> V | None:
        """From this side's share of what the layer reads, (N, *before), to its share of the result,
        (N, *after)."""

    def narrow(self, x: Ring, low: int) -> Ring:
        """This side's share without its low bits."""

    def gate(
        self, number: int, gate: Gate, inputs: Sequence[V | None]
    ) -> Generator[bytes, memoryview, Sequence[V]]:
        """This side's share of what the gate selects, a payload each.

        ``inputs``: y of every payload, or u and v of every payload; the first payload decides.
        Shares of Z_2^n with n < 32 may carry anything above their n bits, in and out.
        """

    def public(self, values: Ring) -> V:
        """This side's share of a public constant."""


def walk(plan: Plan, batch: int, side: Side[V], image: V) -> Generator[bytes, memoryview, V | None]:
    """Evaluate the plan on this side's share of the image; returns its share of the result.

    The result is (N, classes), or (N,) for a label.
    """
    shapes = plan.shapes()
    gates = iter(enumerate(plan.gates()))
    last_use = {source: i for i, op in enumerate(plan.ops) for source in op.sources}
    values: dict[int, V | None] = {0: image}
    for i, op in enumerate(plan.ops):
        inputs = [values[source] for source in op.sources]
        before = (batch, *shapes[op.sources[0]])
        values[i + 1] = yield from _apply(op, side, inputs, before, shapes[i + 1], gates)
        for source in op.sources:
            if last_use[source] == i:
                values.pop(source, None)
    scores = values[len(plan.ops)]
    if plan.result == "scores":
        return scores
    return (yield from _label(side, scores, (batch, *shapes[-1]), gates))


def _apply(
    op: Operation,
    side: Side[V],
    inputs: list[V | None],
    before: Shape,
    after: Shape,
    gates: Numbered,
) -> Generator[bytes, memoryview, V | None]:
    (x, *_) = inputs
    match op:
        case Convolution() | Dense():
            return side.linear(op, x, before[1:], after)
        case Narrow():
            return _lift(lambda a: side.narrow(a, op.low), x) if op.low else x
        case Relu():
            (flat,) = yield from side.gate(*next(gates), [_lift(np.ravel, x)])
            return _lift(lambda a: a.reshape(-1, *before[1:]), flat)
        case MaxPool():
            return (yield from _max_pool(op, side, x, before, gates))
        case Add():
            shifts = np.uint32(op.left_shift), np.uint32(op.right_shift)
            return _lift(lambda a, b: (a << shifts[0]) + (b << shifts[1]), *inputs)
        case SumPool():
            return _lift(lambda a: sum_pool(a, op.kernel, Window(op.stride, op.padding)), x)
        case Flatten():
            return _lift(lambda a: a.reshape(-1, *after), x)


def _max_pool(
    op: MaxPool, side: Side[V], x: V | None, shape: Shape, gates: Numbered
) -> Generator[bytes, memoryview, V | None]:
    for axis, tree in zip((3, 2), op.trees(*shape[2:]), strict=True):
        (x,) = yield from _maxima(side, [x], shape, axis, tree, gates)
        shape = _resized(shape, axis, len(tree.last))
    return x


def _label(
    side: Side[V], scores: V | None, shape: Shape, gates: Numbered
) -> Generator[bytes, memoryview, V | None]:
    """The index of the largest score; the first of equals, as argmax."""
    _, classes = shape
    index = np.broadcast_to(np.arange(classes, dtype=np.uint32), shape)
    tree = tournament_tree(classes)
    _, label = yield from _maxima(side, [scores, side.public(index)], shape, 1, tree, gates)
    return _lift(np.ravel, label)


def _maxima(
    side: Side[V],
    values: list[V | None],
    shape: Shape,
    axis: int,
    tree: Reduction,
    gates: Numbered,
) -> Generator[bytes, memoryview, list[V | None]]:
    """Maxima of the first value's windows along an axis; the other values follow its choice.

    max(a, b) = b + max(a - b, 0), max(a, b, c) = c + max(a - c, b - c, 0): a tie keeps the one
    that comes first. A gate of more ways than its level has candidates is given them as they are,
    and takes zero for one of them.
    """
    bundle = [_take(x, tree.first, axis) for x in values]
    for level in tree.levels:
        number, gate = next(gates)
        size = _resized(shape, axis, level.count)[1:]
        if gate.ways > level.ways:
            return (yield from _rectified(side, bundle, (number, gate), (level, axis, size)))
        *others, last = level.candidates
        lasts = [_take(x, last, axis) for x in bundle]
        differences = [
            _lift(lambda a, b: (a - b).ravel(), _take(x, other, axis), b)
            for x, b in zip(bundle, lasts, strict=True)
            for other in others
        ]
        chosen = yield from side.gate(number, gate, differences)
        best = [_larger(b, c, size) for b, c in zip(lasts, chosen, strict=True)]
        carried = [_take(x, level.carried, axis) for x in bundle]
        bundle = [
            _lift(lambda a, b: np.concatenate([a, b], axis), a, b)
            for a, b in zip(best, carried, strict=True)
        ]
    return [_take(x, tree.last, axis) for x in bundle]


def _rectified(
    side: Side[V],
    bundle: list[V | None],
    numbered: tuple[int, Gate],
    place: tuple[Level, int, Shape],
) -> Generator[bytes, memoryview, list[V | None]]:
    """The last maxima of a pool and zero; each window has its own, so nothing is left to gather."""
    (x,), (level, axis, size) = bundle, place
    lanes = [_lift(np.ravel, _take(x, each, axis)) for each in level.candidates]
    (chosen,) = yield from side.gate(*numbered, lanes)
    return [_lift(lambda a: a.reshape(-1, *size), chosen)]


def _larger(b: V | None, chosen: V, size: Shape) -> V | None:
    return _lift(lambda a, c: a + c.reshape(-1, *size), b, chosen)


def _lift(function: Callable[..., Ring], *values: V | None) -> V | None:
    """The function of known values; unknown where one of them is. It must not mix images."""
    known = [value for value in values if value is not None]
    return lifted(function, known) if len(known) == len(values) else None


def _take(x: V | None, index: NDArray[np.int64], axis: int) -> V | None:
    return _lift(lambda a: np.take(a, index, axis), x)


def _resized(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])
