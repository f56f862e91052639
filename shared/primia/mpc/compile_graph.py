"""The compiler's intermediate form: a float64 graph between torch's modules and the integer plan.

Static single assignment, as in the plan: value 0 is the image (C, H, W), node i yields value
i + 1, and a node's sources are values before it. A graph may represent a value up to a positive
public factor (see ``fold``). NumPy only: nothing here knows torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from primia.errors import UnsupportedModel

Floats = NDArray[np.float64]
Pair = tuple[int, int]
Shape = tuple[int, ...]

SUPPORTED = (
    "Supported: Conv2d (no dilation), BatchNorm behind a convolution or a linear layer, Linear, "
    "ReLU, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d (to a divisor of its input, or before a "
    "flattened fully connected layer), residual additions, "
    "Flatten, Dropout, Identity."
)


def refuse(name: str, kind: str, reason: str) -> UnsupportedModel:
    """The error for a module that cannot be compiled; the caller raises it."""
    return UnsupportedModel(
        f"Layer '{name}' ({kind}) cannot be compiled: {reason}.",
        hint=SUPPORTED,
        layer=name,
        kind=kind,
    )


@dataclass(frozen=True)
class Statistics:
    """What a BatchNorm promises of each output channel: its mean and standard deviation."""

    mean: Floats  # (out,)
    deviation: Floats  # (out,), >= 0


@dataclass(frozen=True)
class Node:
    name: str
    sources: tuple[int, ...]

    @property
    def kind(self) -> str:
        return type(self).__name__

    @property
    def source(self) -> int:
        return self.sources[0]


@dataclass(frozen=True)
class Linear(Node):
    """A fully connected layer: weight (out, in), bias (out,)."""

    weight: Floats
    bias: Floats
    statistics: Statistics | None


@dataclass(frozen=True)
class Conv(Linear):
    """A convolution: weight (out, in / groups, kernel height, kernel width), zero padding."""

    stride: Pair
    padding: Pair
    groups: int


@dataclass(frozen=True)
class Norm(Node):
    """Batch normalisation with frozen statistics: y = scale * x + offset, per channel."""

    scale: Floats  # gamma / sqrt(running variance + epsilon), (channels,)
    offset: Floats  # beta - scale * running mean, (channels,)
    statistics: Statistics


@dataclass(frozen=True)
class Rectify(Node):
    pass


@dataclass(frozen=True)
class Window(Node):
    kernel: Pair
    stride: Pair
    padding: Pair


@dataclass(frozen=True)
class Maximum(Window):
    """Max pooling; padding never wins."""


@dataclass(frozen=True)
class Average(Window):
    """Sum over the window (padding counts as zero), over ``divisor``."""

    divisor: int


@dataclass(frozen=True)
class Sum(Window):
    """Sum over the window: average pooling without its division."""


@dataclass(frozen=True)
class Resample(Node):
    """Adaptive average pooling to a size that does not divide its input's: y = rows x columns^T."""

    rows: Floats  # (H', H)
    columns: Floats  # (W', W)


@dataclass(frozen=True)
class Addition(Node):
    pass


@dataclass(frozen=True)
class Flat(Node):
    pass


@dataclass(frozen=True)
class Graph:
    input_shape: Shape
    nodes: tuple[Node, ...]

    def users(self) -> dict[int, list[int]]:
        """Per value, the indices of the nodes that read it."""
        readers: dict[int, list[int]] = {value: [] for value in range(len(self.nodes) + 1)}
        for index, node in enumerate(self.nodes):
            for source in node.sources:
                readers[source].append(index)
        return readers

    def shapes(self) -> tuple[Shape, ...]:
        """The shape of every value, the image first."""
        found: list[Shape] = [self.input_shape]
        for node in self.nodes:
            found.append(output_shape(node, [found[source] for source in node.sources]))
        return tuple(found)


class Rewriter:
    """Copies a graph's nodes into a new one while a pass drops, merges or moves some of them."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._now: dict[int, int] = {0: 0}

    def current(self, old: int) -> int:
        """The new graph's value for an old one."""
        return self._now[old]

    def emit(self, node: Node, old: int) -> None:
        """Append ``node``, its sources renamed, as the new graph's value for ``old``."""
        sources = tuple(self._now[source] for source in node.sources)
        self.append(replace(node, sources=sources), old)

    def append(self, node: Node, old: int) -> None:
        """Append ``node``, whose sources are new values already."""
        self.nodes.append(node)
        self._now[old] = len(self.nodes)

    def alias(self, old: int, source: int) -> None:
        """Let readers of ``old`` read what became of the old value ``source``."""
        self._now[old] = self._now[source]


def rewrite(graph: Graph, step: Callable[[Rewriter, int, Node], None]) -> Graph:
    """Run ``step(rewriter, old value, node)`` over the graph in order."""
    rewriter = Rewriter()
    for index, node in enumerate(graph.nodes):
        step(rewriter, index + 1, node)
    return Graph(graph.input_shape, tuple(rewriter.nodes))


def output_shape(node: Node, sources: Sequence[Shape]) -> Shape:
    """The shape a node yields; refuses inputs that do not fit it."""
    shape = sources[0]
    if isinstance(node, Conv):
        return _convolved(node, shape)
    if isinstance(node, Linear):
        if shape != (node.weight.shape[1],):
            raise refuse(node.name, "Linear", f"its input is {shape}, flatten it first")
        return (node.weight.shape[0],)
    if isinstance(node, Window):
        return (*_channels(node, shape)[:1], *_slide(node, shape, node.kernel))
    if isinstance(node, Resample):
        return (*_channels(node, shape)[:1], len(node.rows), len(node.columns))
    if isinstance(node, Flat):
        return (int(np.prod(shape)),)
    if isinstance(node, Addition) and sources[0] != sources[1]:
        raise refuse(node.name, "addition", f"its inputs differ in shape: {sources}")
    return shape


def _channels(node: Node, shape: Shape) -> Shape:
    if len(shape) != 3:
        raise refuse(node.name, node.kind, f"it needs an input (C, H, W), not {shape}")
    return shape


def _convolved(node: Conv, shape: Shape) -> Shape:
    channels = _channels(node, shape)[0]
    if channels != node.weight.shape[1] * node.groups:
        wanted = node.weight.shape[1] * node.groups
        raise refuse(node.name, "Conv2d", f"it takes {wanted} channels, its input has {channels}")
    kernel = (node.weight.shape[2], node.weight.shape[3])
    return (node.weight.shape[0], *_slide(node, shape, kernel))


def _slide(node: Conv | Window, shape: Shape, kernel: Pair) -> Pair:
    sizes = [
        (size + 2 * pad - width) // step + 1
        for size, pad, width, step in zip(shape[1:], node.padding, kernel, node.stride, strict=True)
    ]
    if min(sizes) < 1:
        raise refuse(node.name, node.kind, f"its kernel {kernel} is larger than its input {shape}")
    return sizes[0], sizes[1]
