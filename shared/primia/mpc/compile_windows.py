"""Calibrated windows: comparisons of few bits, where the owner's images show that they suffice.

The exact plan's gates compare whatever the ring holds above a result's last bit. Calibration keeps,
at every narrowing, the bits that the largest value met needs, times a margin, and lets a gate leave
out low bits until ``RELU_BITS`` or ``MAX_BITS`` are left. Keys shrink in proportion to the bits;
values stay at full precision and only the choice near zero becomes coarse. Pools compare two values
at a time: a request more along an axis, and a third fewer keys. An image whose values leave a
window gets a wrong result, which nothing notices: hence ``exact`` is the default.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primia.errors import InvalidInput
from primia.mpc.compiled import CompiledModel
from primia.mpc.gate_shape import RING_BITS
from primia.mpc.operations import Operation
from primia.mpc.oracle import decode_scores, encode, evaluate
from primia.mpc.plan import MaxPool, Narrow, Plan, Relu
from primia.prg import Seed, Stream

RELU_BITS, MAX_BITS = 11, 12
# Largest value expected of later images, over the largest met.
MARGIN = 1.5
# Fewer images say too little about the largest values.
MIN_IMAGES = 8


@dataclass(frozen=True)
class Agreement:
    """Of the plan, with the parties' randomness, and the float model on the same images:
    the share of equal labels, and the largest difference of a logit."""

    images: int
    same_labels: float
    largest_difference: float


def calibrate(model: CompiledModel, images: NDArray[Any]) -> CompiledModel:
    """The model with windows for images like these, (N, C, H, W) normalised float.

    Raises InvalidInput for fewer than ``MIN_IMAGES``.
    """
    if len(images) < MIN_IMAGES:
        raise InvalidInput(
            f"Calibrated windows need {MIN_IMAGES} images or more, not {len(images)}.",
            hint="Give the model version more calibration images, or ask for accuracy 'exact'.",
        )
    peaks = _peaks(model, images)
    plan = _windowed(model.plan, peaks)
    widths = plan.widths()
    ops = tuple(_compared(op, widths[op.sources[0]]) for op in plan.ops)
    return CompiledModel(replace(plan, ops=ops), model.weights)


def _compared(op: Operation, width: int) -> Operation:
    if isinstance(op, Relu) and width < RING_BITS:
        return replace(op, coarse=max(0, width - RELU_BITS))
    if isinstance(op, MaxPool) and width < RING_BITS:
        return replace(op, coarse=max(0, width - MAX_BITS), ways=2)
    return op


def agreement(model: CompiledModel, images: NDArray[Any], wanted: NDArray[np.float64]) -> Agreement:
    """``wanted``: the float model's logits of the images, (N, classes)."""
    draw = Stream(Seed.fresh(), "oracle")
    same, largest = 0, 0.0
    for image, logits in zip(images, wanted, strict=True):
        encoded = encode(model.plan, image[None])
        found = evaluate(model, encoded, lambda _, s: draw.words(s), lambda _, __, s: draw.words(s))
        scores = decode_scores(model.plan, found.scores)[0]  # (classes,)
        same += int(scores.argmax() == logits.argmax())
        largest = max(largest, float(np.abs(scores - logits).max()))
    return Agreement(len(images), same / len(images), largest)


def _peaks(model: CompiledModel, images: NDArray[Any]) -> dict[int, float]:
    """Per operation that narrows or pools, the largest magnitude met, in units of its result; for
    a pool of a difference."""
    found: dict[int, float] = {}
    widths = model.plan.widths()
    for image in images:
        peaks = evaluate(model, encode(model.plan, image[None])).peaks
        for i, op in enumerate(model.plan.ops):
            if isinstance(op, Narrow | MaxPool):
                width = widths[op.source] if isinstance(op, MaxPool) else widths[i + 1]
                peak = peaks[op.layer] * 2.0 ** (width - 1)
                found[i] = max(found.get(i, 0.0), peak)
    return found


def _windowed(plan: Plan, peaks: dict[int, float]) -> Plan:
    """The plan with as few bits at each narrowing as its values, and differences of them in the
    pools behind it, need."""
    ops = list(plan.ops)
    for i, op in enumerate(plan.ops):
        if not isinstance(op, Narrow):
            continue
        largest = max(peaks[k] for k in (i, *_pools_behind(plan, i + 1)))
        bits = max(1, int(np.ceil(np.log2(max(1.0, MARGIN * largest))))) + 1
        spare = plan.widths()[i + 1] - bits
        ops[i] = replace(op, high=op.high + max(0, spare))
    return replace(plan, ops=tuple(ops))


def _pools_behind(plan: Plan, value: int) -> list[int]:
    """The pools that work in the ring of this value, by the number of their operation."""
    found = []
    for i, op in enumerate(plan.ops):
        if isinstance(op, MaxPool) and op.source == value:
            found += [i, *_pools_behind(plan, i + 1)]
    return found
