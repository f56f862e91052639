"""Sizes followed through a program, and what it costs; nothing here imports torch, nothing runs.

All sizes are those of one image, without the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from primia.errors import InvalidInput
from primia.learning.programs import document as d
from primia.learning.programs.document import Program, Shape

# Above any network for images of 512 pixels that one machine trains (VGG-16: 138 million
# parameters; 15 and, at 512 pixels, 80 billion multiplications).
MAX_PARAMETERS = 1 << 29
MAX_VALUES = 1 << 28
MAX_MULTIPLICATIONS = 1 << 41


class Misfit(InvalidInput):
    code = "program-misfit"
    title = "The program's sizes do not fit"


class Cost(NamedTuple):
    """``parameters`` trained, ``buffers`` of BatchNorm; ``values`` that all steps give for one
    image; ``multiplications`` of its convolutions and fully connected layers."""

    parameters: int
    buffers: int
    values: int
    multiplications: int


def follow(program: Program, shape: Shape | None = None) -> list[Shape]:
    """The size of every value: the image (C, H, W), then what each step gives.

    Raises Misfit naming the step.
    """
    found: list[Shape] = [tuple(program.input if shape is None else shape)]
    layers = {layer.path: layer for layer in program.layers}
    for number, step in enumerate(program.steps, 1):
        given = [found[each] for each in d.sources(step)]
        try:
            made = _after(step, layers, given)
            if len(made) > d.MAX_DIMENSIONS or not all(1 <= n <= d.MAX_SIZE for n in made):
                raise _Wrong(f"gives {made}")
        except _Wrong as error:
            name = step.layer if isinstance(step, d.Apply) else step.op
            sizes = ", ".join(str(each) for each in given)
            raise Misfit(f"Step {number} ({name}) of {sizes}: {error}.") from None
        found.append(made)
    return found


def cost(program: Program, shape: Shape | None = None) -> Cost:
    """Raises Misfit for sizes that do not fit, and for a program that costs too much."""
    sizes = follow(program, shape)
    layers = {layer.path: layer for layer in program.layers}
    work = sum(
        _multiplications(layers[step.layer], sizes[step.of], sizes[number])
        for number, step in enumerate(program.steps, 1)
        if isinstance(step, d.Apply)
    )
    found = Cost(
        parameters=sum(_parameters(layer) for layer in program.layers),
        buffers=sum(2 * each.channels for each in program.layers if isinstance(each, d.BatchNorm)),
        values=sum(math.prod(each) for each in sizes),
        multiplications=work,
    )
    limits = Cost(MAX_PARAMETERS, MAX_PARAMETERS, MAX_VALUES, MAX_MULTIPLICATIONS)
    for name, value, limit in zip(Cost._fields, found, limits, strict=True):
        if value > limit:
            raise Misfit(f"The program has {value} {name}; at most {limit} are taken.")
    return found


def alive(program: Program, shape: Shape | None = None) -> int:
    """The most values of one image that are there at once, each until its last use."""
    sizes = [math.prod(each) for each in follow(program, shape)]
    last = {
        value: number for number, step in enumerate(program.steps, 1) for value in d.sources(step)
    }
    return max(
        sum(size for value, size in enumerate(sizes[: now + 1]) if last.get(value, now) >= now)
        for now in range(len(sizes))
    )


def classes(program: Program, shape: Shape | None = None) -> int:
    """How many scores it gives. Raises Misfit where it gives anything but scores."""
    last = follow(program, shape)[-1]
    if len(last) != 1:
        raise Misfit(f"The program gives {last} for an image, not one score a class.")
    return last[0]


def check(program: Program) -> None:
    """That it gives scores for the image that it was exported for, within the limits.

    Raises ValueError, for validators.
    """
    try:
        cost(program)
        classes(program)
    except Misfit as error:
        raise ValueError(error.detail) from None


class _Wrong(Exception):
    """Becomes Misfit, with the step's name."""


def _require(fits: bool, reason: str) -> None:
    if not fits:
        raise _Wrong(reason)


def _maps(shape: Shape, channels: int | None = None) -> Shape:
    _require(len(shape) == 3, "it takes maps (channels, height, width)")
    if channels is not None:
        _require(shape[0] == channels, f"it takes {channels} channels")
    return shape


def _after(step: d.AnyStep, layers: Mapping[str, d.AnyLayer], given: Sequence[Shape]) -> Shape:
    if isinstance(step, d.Apply):
        return _through(layers[step.layer], given[0])
    rule: Callable[..., Shape] = _RULES[type(step)]
    return rule(step, *([given] if isinstance(step, d.Combine | d.Concatenate) else given))


def _through(layer: d.AnyLayer, shape: Shape) -> Shape:
    match layer:
        case d.Conv2d():
            _maps(shape, layer.given)
            sides = (
                _windows(shape[i + 1], layer.kernel[i], layer.stride[i], layer.padding[i],
                         layer.dilation[i])
                for i in (0, 1)
            )  # fmt: skip
            return (layer.made, *sides)
        case d.Linear():
            _require(shape[-1] == layer.given, f"it takes {layer.given} values")
            return (*shape[:-1], layer.made)
        case d.BatchNorm():
            _require(len(shape) == (3 if layer.maps else 1), "it was made for maps or for vectors")
            _require(shape[0] == layer.channels, f"it takes {layer.channels} channels")
        case d.GroupNorm():
            _require(shape[0] == layer.channels, f"it takes {layer.channels} channels")
        case d.LayerNorm():
            _require(shape[-len(layer.shape) :] == layer.shape, f"it takes {layer.shape}")
        case d.Dropout():
            _require(not layer.channels or len(shape) == 3, "whole channels are those of maps")
    return shape


def _windows(
    size: int, kernel: int, stride: int, padding: int, dilation: int = 1, ceil: bool = False
) -> int:
    """How many windows lie along a side (torch's rule: with ceil, none starts in the border)."""
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    _require(span >= 0, f"a window of {kernel} is larger than the image")
    if not ceil:
        return span // stride + 1
    count = -(-span // stride) + 1
    return count - 1 if (count - 1) * stride >= size + padding else count


def _same(_step: d.Activation | d.Slope | d.Affine, shape: Shape) -> Shape:
    return shape


def _pool(step: d.MaxPool | d.AveragePool, shape: Shape) -> Shape:
    _maps(shape)
    _require(
        all(2 * p <= k for p, k in zip(step.padding, step.kernel, strict=True)),
        "its padding is above half of its window",
    )
    sides = (
        _windows(shape[i + 1], step.kernel[i], step.stride[i], step.padding[i], 1, step.ceil)
        for i in (0, 1)
    )
    return (shape[0], *sides)


def _adaptive(step: d.AdaptivePool, shape: Shape) -> Shape:
    return (_maps(shape)[0], *step.size)


def _pad(step: d.Pad, shape: Shape) -> Shape:
    left, right, top, bottom = step.sides
    channels, height, width = _maps(shape)
    return (channels, height + top + bottom, width + left + right)


def _combine(_step: d.Combine, given: Sequence[Shape]) -> Shape:
    """Broadcast, as torch has it; the batch keeps tensors of one length apart."""
    left, right = given
    _require(len(left) == len(right), "the two have different numbers of dimensions")
    pairs = list(zip(left, right, strict=True))
    _require(all(a == b or 1 in (a, b) for a, b in pairs), "the two do not fit each other")
    return tuple(max(pair) for pair in pairs)


def _concatenate(step: d.Concatenate, given: Sequence[Shape]) -> Shape:
    at, first = step.dimension - 1, given[0]
    _require(at < len(first), "there is no such dimension")
    others = {each[:at] + each[at + 1 :] for each in given if len(each) == len(first)}
    _require(len(others) == 1 and len({len(each) for each in given}) == 1, "they do not fit")
    return (*first[:at], sum(each[at] for each in given), *first[at + 1 :])


def _slice(step: d.Slice, shape: Shape) -> Shape:
    at = step.dimension - 1
    _require(at < len(shape), "there is no such dimension")
    _require(step.start < step.stop <= shape[at], "it reaches beyond the values there are")
    return (*shape[:at], -(-(step.stop - step.start) // step.step), *shape[at + 1 :])


def _flatten(step: d.Flatten, shape: Shape) -> Shape:
    at = step.start - 1
    _require(at < len(shape), "there is no such dimension")
    return (*shape[:at], math.prod(shape[at:]))


def _reshape(step: d.Reshape, shape: Shape) -> Shape:
    known, values = math.prod(n for n in step.shape if n), math.prod(shape)
    _require(step.shape.count(0) <= 1 and values % known == 0, f"it cannot become {step.shape}")
    made = tuple(n or values // known for n in step.shape)
    _require(math.prod(made) == values, f"it cannot become {step.shape}")
    return made


def _permute(step: d.Permute, shape: Shape) -> Shape:
    _require(sorted(step.dimensions) == list(range(1, len(shape) + 1)), "no order of dimensions")
    return tuple(shape[each - 1] for each in step.dimensions)


def _mean(step: d.Mean, shape: Shape) -> Shape:
    chosen = set(step.dimensions)
    _require(max(chosen) <= len(shape), "there is no such dimension")
    _require(len(chosen) == len(step.dimensions), "a dimension is named twice")
    _require(step.keep or len(chosen) < len(shape), "nothing would be left")
    kept = (
        (1 if at in chosen else n) for at, n in enumerate(shape, 1) if step.keep or at not in chosen
    )
    return tuple(kept)


_RULES: Mapping[type[d.Part], Callable[..., Shape]] = {
    d.Activation: _same,
    d.Slope: _same,
    d.Affine: _same,
    d.MaxPool: _pool,
    d.AveragePool: _pool,
    d.AdaptivePool: _adaptive,
    d.Pad: _pad,
    d.Combine: _combine,
    d.Concatenate: _concatenate,
    d.Slice: _slice,
    d.Flatten: _flatten,
    d.Reshape: _reshape,
    d.Permute: _permute,
    d.Mean: _mean,
}


def _parameters(layer: d.AnyLayer) -> int:
    match layer:
        case d.Conv2d():
            weights = layer.made * (layer.given // layer.groups) * math.prod(layer.kernel)
            return weights + layer.made * layer.bias
        case d.Linear():
            return layer.made * (layer.given + layer.bias)
        case d.BatchNorm() | d.GroupNorm():
            return 2 * layer.channels * layer.affine
        case d.LayerNorm():
            return 2 * math.prod(layer.shape) * layer.affine
    return 0


def _multiplications(layer: d.AnyLayer, given: Shape, made: Shape) -> int:
    match layer:
        case d.Conv2d():
            each = (layer.given // layer.groups) * math.prod(layer.kernel)
            return math.prod(made) * each
        case d.Linear():
            return math.prod(given) * layer.made
    return 0
