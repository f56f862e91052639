"""Layers without BatchNorm brought to one magnitude, so that fixed point has bits for their values.

ReLU, max, sum and addition pass a positive factor through. So what a linear layer yields may be
divided by one, which the next linear layer's weights take back (cross-layer equalisation: Nagel
et al., ICCV 2019, with one factor a layer). Factors are powers of two: no result changes by a bit.
"""

from __future__ import annotations

import math
from dataclasses import replace

from primia.mpc.compile_graph import Graph, Linear, Node, Rewriter, rewrite

# What a BatchNorm's eight deviations of about one come to.
TARGET = 8.0


def equalise(graph: Graph, magnitudes: tuple[float, ...]) -> tuple[Graph, tuple[float, ...]]:
    """A folded graph with the same last value, and its magnitudes.

    Values that addition, pooling and ReLU connect share a factor. The image and the scores keep
    theirs, and so does whatever a BatchNorm has brought to its magnitude already.
    """
    factors = _factors(graph, magnitudes)

    def step(rewriter: Rewriter, value: int, node: Node) -> None:
        if isinstance(node, Linear):
            given, made = factors[node.source], factors[value]
            node = replace(node, weight=node.weight * (given / made), bias=node.bias / made)
        rewriter.emit(node, value)

    scaled = tuple(each / factor for each, factor in zip(magnitudes, factors, strict=True))
    return rewrite(graph, step), scaled


def _factors(graph: Graph, magnitudes: tuple[float, ...]) -> list[float]:
    """The factor of every value: what stands for x in the new graph is x / factor."""
    groups = _groups(graph)
    kept = {groups[0], groups[-1]}
    kept |= {
        groups[index + 1]
        for index, node in enumerate(graph.nodes)
        if isinstance(node, Linear) and node.statistics is not None
    }
    largest: dict[int, float] = {}
    for group, magnitude in zip(groups, magnitudes, strict=True):
        largest[group] = max(magnitude, largest.get(group, 0.0))
    return [1.0 if group in kept else _power(largest[group] / TARGET) for group in groups]


def _groups(graph: Graph) -> list[int]:
    """Of every value a number; values that share a factor have the same."""
    groups = [0]
    for index, node in enumerate(graph.nodes):
        if isinstance(node, Linear):
            groups.append(index + 1)
            continue
        joined = {groups[source] for source in node.sources}
        groups = [min(joined) if group in joined else group for group in groups]
        groups.append(min(joined))
    return groups


def _power(value: float) -> float:
    """The smallest power of two that is at least ``value``; 1 for nothing."""
    return 2.0 ** math.ceil(math.log2(value)) if value > 0 else 1.0
