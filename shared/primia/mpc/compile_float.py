"""The float64 graph on images: the reference that folding keeps and calibration measures."""

from __future__ import annotations

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
    Sum,
)
from primia.mpc.compile_maps import convolve, dense, max_pool, sum_pool


def evaluate_graph(graph: Graph, images: Floats) -> list[Floats]:
    """Every value (N, ...) for images (N, C, H, W); folded or not."""
    values = [np.asarray(images, np.float64)]
    for node in graph.nodes:
        values.append(_node(node, [values[source] for source in node.sources]))
    return values


def _node(node: Node, inputs: list[Floats]) -> Floats:
    x = inputs[0]
    if isinstance(node, Conv):
        product = convolve(x, node.weight, node.stride, node.padding, node.groups)
        return product + node.bias[:, None, None]
    if isinstance(node, Linear):
        return dense(x, node.weight) + node.bias
    if isinstance(node, Norm):
        shape = (-1, *[1] * (x.ndim - 2))
        return x * node.scale.reshape(shape) + node.offset.reshape(shape)
    if isinstance(node, Rectify):
        return np.maximum(x, 0.0)
    if isinstance(node, Maximum):
        return max_pool(x, node.kernel, node.stride, node.padding)
    if isinstance(node, Average):
        return sum_pool(x, node.kernel, node.stride, node.padding) / node.divisor
    if isinstance(node, Sum):
        return sum_pool(x, node.kernel, node.stride, node.padding)
    if isinstance(node, Resample):
        return np.asarray(node.rows @ x @ node.columns.T)
    if isinstance(node, Addition):
        return x + inputs[1]
    assert isinstance(node, Flat)
    return x.reshape(len(x), -1)
