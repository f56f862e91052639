"""Rewrites of the float64 graph that change no result: what the plan's gates need not compute.

1. ``fold_norms``: BatchNorm joins the linear layer before it: W' = scale W, b' = scale b + offset.
2. ``fold_resampling``: uneven adaptive pooling before a flattened fully connected layer is linear:
   it joins that layer's weights.
3. ``relu_behind_pooling``: max and ReLU commute, and pooling first leaves fewer ReLUs.
4. ``fold_averages``: average pooling sums; its 1/k moves into the next linear layer's weights.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from primia.mpc.compile_graph import (
    Addition,
    Average,
    Conv,
    Flat,
    Floats,
    Graph,
    Linear,
    Maximum,
    Node,
    Norm,
    Rectify,
    Resample,
    Rewriter,
    Sum,
    refuse,
    rewrite,
)

# A merged layer has at most this many times the weights that it had.
_GROWTH = 2


def fold(graph: Graph) -> Graph:
    """All rewrites in order. Raises UnsupportedModel naming the layer that does not fit."""
    return fold_averages(relu_behind_pooling(fold_resampling(fold_norms(graph))))


def fold_norms(graph: Graph) -> Graph:
    """Merge every Norm into the Linear or Conv whose only reader it is; refuse any other Norm."""
    users = graph.users()

    def step(rewriter: Rewriter, value: int, node: Node) -> None:
        if isinstance(node, Norm):
            before = graph.nodes[node.source - 1] if node.source else None
            if not isinstance(before, Linear) or users[node.source] != [value - 1]:
                raise refuse(
                    node.name,
                    "BatchNorm",
                    "it must follow a convolution or linear layer whose output nothing else reads",
                )
            rewriter.append(_merged(_last(rewriter, node), node), value)
            return
        rewriter.emit(node, value)

    return _without_unread(rewrite(graph, step))


def _last(rewriter: Rewriter, node: Norm) -> Linear:
    found = rewriter.nodes[rewriter.current(node.source) - 1]
    assert isinstance(found, Linear)
    return found


def _merged(layer: Linear, norm: Norm) -> Linear:
    scale = norm.scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    return replace(
        layer,
        weight=layer.weight * scale,
        bias=layer.bias * norm.scale + norm.offset,
        statistics=norm.statistics,
    )


def _without_unread(graph: Graph) -> Graph:
    """Drop nodes that the last value does not depend on."""
    needed = {len(graph.nodes)}
    for index in range(len(graph.nodes) - 1, -1, -1):
        if index + 1 in needed:
            needed.update(graph.nodes[index].sources)

    def step(rewriter: Rewriter, value: int, node: Node) -> None:
        if value in needed:
            rewriter.emit(node, value)

    return rewrite(graph, step)


def fold_resampling(graph: Graph) -> Graph:
    """Merge every Resample into the fully connected layer that reads it flattened."""
    users = graph.users()
    merged = {
        _flattened_reader(graph, users, index): node
        for index, node in enumerate(graph.nodes)
        if isinstance(node, Resample)
    }

    def step(rewriter: Rewriter, value: int, node: Node) -> None:
        if isinstance(node, Resample):
            rewriter.alias(value, node.source)
            return
        resample = merged.get(value - 1)
        if resample is not None:
            assert isinstance(node, Linear)
            node = replace(node, weight=_resampled(node.weight, resample))
        rewriter.emit(node, value)

    return rewrite(graph, step)


def _flattened_reader(graph: Graph, users: dict[int, list[int]], index: int) -> int:
    """The index of the Linear that alone reads a Resample, through a Flat."""
    node, at = graph.nodes[index], index
    assert isinstance(node, Resample)
    made, given = (len(node.rows), len(node.columns)), (node.rows.shape[1], node.columns.shape[1])
    uneven = f"its output {made} does not divide its input {given}"
    for wanted in (Flat, Linear):
        readers = users[at + 1]
        at = readers[0] if len(readers) == 1 else -1
        if at < 0 or not isinstance(graph.nodes[at], wanted) or isinstance(graph.nodes[at], Conv):
            raise refuse(
                node.name,
                "AdaptiveAvgPool2d",
                f"{uneven}, and no flattened fully connected layer follows it to take it up",
            )
    if given[0] * given[1] > _GROWTH * made[0] * made[1]:
        raise refuse(
            node.name, "AdaptiveAvgPool2d", f"{uneven}, which is much larger; resize the images"
        )
    return at


def _resampled(weight: Floats, by: Resample) -> Floats:
    """(out, C H' W') to (out, C H W)."""
    shape = (len(weight), -1, len(by.rows), len(by.columns))
    along = weight.reshape(shape) @ by.columns  # (out, C, H', W)
    return np.asarray((by.rows.T @ along).reshape(len(weight), -1))


def relu_behind_pooling(graph: Graph) -> Graph:
    """ReLU then MaxPool becomes MaxPool then ReLU, where the pooling is the ReLU's only reader."""
    while True:
        users = graph.users()
        late = {
            index + 1
            for index, node in enumerate(graph.nodes)
            if isinstance(node, Rectify)
            and len(users[index + 1]) == 1
            and isinstance(graph.nodes[users[index + 1][0]], Maximum)
        }
        if not late:
            return graph
        graph = _swapped(graph, late)


def _swapped(graph: Graph, late: set[int]) -> Graph:
    def step(rewriter: Rewriter, value: int, node: Node) -> None:
        if value in late:
            rewriter.alias(value, node.source)
            return
        rewriter.emit(node, value)
        if isinstance(node, Maximum) and node.source in late:
            relu = graph.nodes[node.source - 1]
            rewriter.append(replace(relu, sources=(rewriter.current(value),)), value)

    return rewrite(graph, step)


def fold_averages(graph: Graph) -> Graph:
    """Average becomes Sum; each value's true content is its factor times the value here.

    Positive factors pass ReLU, max, sum and flatten; a linear layer takes its input's factor
    into its weights, so its own output's is 1.
    """
    factors = [1.0]

    def step(rewriter: Rewriter, value: int, node: Node) -> None:
        factor = factors[node.source]
        if isinstance(node, Addition) and factors[node.sources[1]] != factor:
            raise refuse(node.name, "addition", "only one of its inputs is average-pooled")
        if isinstance(node, Linear):
            node, factor = replace(node, weight=node.weight * factor), 1.0
        if isinstance(node, Average):
            factor /= node.divisor
            node = Sum(node.name, node.sources, node.kernel, node.stride, node.padding)
        factors.append(factor)
        rewriter.emit(node, value)

    folded = rewrite(graph, step)
    if factors[-1] != 1.0:
        last = folded.nodes[-1].name
        raise refuse(last, "average pooling", "no linear layer follows it to take up its division")
    return folded


def linear_layers(graph: Graph) -> dict[str, tuple[Floats, Floats]]:
    """Name -> (weight, bias) of every linear layer, in order."""
    return {node.name: (node.weight, node.bias) for node in graph.nodes if isinstance(node, Linear)}
