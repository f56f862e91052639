"""Rewrites of the float64 graph that change no result: what the plan's gates need not compute.

1. ``fold_norms``: BatchNorm joins the linear layer before it: W' = scale W, b' = scale b + offset.
2. ``relu_behind_pooling``: max and ReLU commute, and pooling first leaves fewer ReLUs.
3. ``fold_averages``: average pooling sums; its 1/k moves into the next linear layer's weights.
"""

from __future__ import annotations

from dataclasses import replace

from primia.mpc.compile_graph import (
    Addition,
    Average,
    Floats,
    Graph,
    Linear,
    Maximum,
    Node,
    Norm,
    Rectify,
    Rewriter,
    Sum,
    refuse,
    rewrite,
)


def fold(graph: Graph) -> Graph:
    """All rewrites in order. Raises UnsupportedModel naming the layer that does not fit."""
    return fold_averages(relu_behind_pooling(fold_norms(graph)))


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
