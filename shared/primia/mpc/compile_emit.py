"""A folded graph and its scales -> the operations of a plan.

Nodes become operations one by one, with a ``Narrow`` before each gate: what it reads is rounded to
the fraction bits of its result. So comparisons look at no bit that the result does not have, and
their keys and messages are as short as that allows.
"""

from __future__ import annotations

from collections.abc import Sequence

from primia.mpc.compile_graph import (
    Addition,
    Conv,
    Flat,
    Graph,
    Linear,
    Maximum,
    Node,
    Rectify,
    Sum,
)
from primia.mpc.compile_scales import Scales
from primia.mpc.operations import (
    Add,
    Convolution,
    Dense,
    Flatten,
    MaxPool,
    Narrow,
    Operation,
    Relu,
    SumPool,
)


def operations(graph: Graph, scales: Scales) -> list[Operation]:
    """The plan's operations in order."""
    ops: list[Operation] = []
    numbers, kept = [0], [scales.values[0]]  # of every value of the graph: its number, its scale
    for index, node in enumerate(graph.nodes):
        sources = [numbers[source] for source in node.sources]
        given = [kept[source] for source in node.sources]
        spare = given[0] - _wanted(graph, index, scales)
        if spare > 0:
            ops.append(Narrow(f"{node.name}.narrow", sources[0], spare))
            sources[0] = len(ops)
            given[0] -= spare
        ops.append(_operation(node, sources, given, scales.weights.get(index, 0)))
        numbers.append(len(ops))
        kept.append(ops[-1].scale(*given))
    return ops


def _wanted(graph: Graph, index: int, scales: Scales) -> int:
    """The fraction bits that a node should read."""
    node = graph.nodes[index]
    if isinstance(node, Rectify):
        return scales.values[index + 1]
    if isinstance(node, Maximum) and _rectified_only(graph, index + 1):
        return scales.values[0]
    return scales.values[node.source]


def _rectified_only(graph: Graph, value: int) -> bool:
    """Whether every way from this value leads through ReLU: only that widens it again."""
    readers = [(user, graph.nodes[user]) for user in graph.users()[value]]
    return bool(readers) and all(
        isinstance(node, Rectify)
        or (isinstance(node, Maximum) and _rectified_only(graph, user + 1))
        for user, node in readers
    )


def _operation(
    node: Node, sources: Sequence[int], given: Sequence[int], weight_bits: int
) -> Operation:
    name, source = node.name, sources[0]
    if isinstance(node, Conv):
        out, _, *kernel = node.weight.shape
        size = (kernel[0], kernel[1])
        place = (node.stride, node.padding, node.groups)
        return Convolution(name, source, out, size, *place, weight_bits)
    if isinstance(node, Linear):
        return Dense(name, source, len(node.weight), weight_bits)
    if isinstance(node, Rectify):
        return Relu(name, source)
    if isinstance(node, Maximum):
        return MaxPool(name, source, node.kernel, node.stride, node.padding)
    if isinstance(node, Sum):
        return SumPool(name, source, node.kernel, node.stride, node.padding)
    if isinstance(node, Addition):
        scale = max(given)
        return Add(name, sources[0], sources[1], scale - given[0], scale - given[1])
    assert isinstance(node, Flat)
    return Flatten(name, source)
