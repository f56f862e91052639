"""Fixed-point scales: as many weight bits a layer as the ring leaves room for.

The ring holds |y| < 2^31; expected magnitudes must stay below 2^29 (two bits of headroom). That
bounds the fraction bits of every value; bounds flow backwards through operations that keep their
input's scale, and what a linear layer's input leaves of its bound goes to its weights. Rounding
the weights dominates the error, so every bit is used.

A ReLU that only a sum over k values reads keeps log2(k) / 2 bits less than others: the gates'
roundings are independent, so the mean of k values is as exact as one value with all bits, and the
layer behind it, whose weights carry the 1/k, has those bits for its weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from primia.errors import UnsupportedModel
from primia.mpc.compile_graph import Addition, Graph, Linear, Rectify, Sum
from primia.mpc.compiled import WEIGHT_LIMIT
from primia.mpc.operations import MAX_SHIFT
from primia.mpc.plan import MAX_SCALE
from primia.mpc.weights import LayerWeights

HEADROOM_BITS = 2
_ROOM = 31 - HEADROOM_BITS
# Weights of fewer units than this (root mean square) lose several percent to rounding.
_COARSE = 16.0


@dataclass(frozen=True)
class Scales:
    """Fraction bits of every value, and of the weights of every linear node (by index)."""

    values: tuple[int, ...]
    weights: dict[int, int]


def choose_scales(graph: Graph, magnitudes: tuple[float, ...], activation_bits: int) -> Scales:
    """The scales of a folded graph whose values have these expected magnitudes.

    Raises UnsupportedModel naming the layer that cannot keep its headroom.
    """
    targets = _activation_bits(graph, activation_bits)
    limits = _limits(graph, magnitudes, targets)
    values, weights = [activation_bits], dict[int, int]()
    for index, node in enumerate(graph.nodes):
        given = values[node.source]
        if isinstance(node, Linear):
            limit = min(limits[index + 1], _bias_limit(node))
            weights[index] = _weight_bits(node, limit - given, magnitudes[index + 1])
            values.append(given + weights[index])
        elif isinstance(node, Rectify):
            values.append(targets[index])
        elif isinstance(node, Addition):
            values.append(max(values[source] for source in node.sources))
        else:
            values.append(given)
    return Scales(tuple(values), weights)


def _activation_bits(graph: Graph, activation_bits: int) -> dict[int, int]:
    """Per ReLU (by index), the fraction bits of its result."""
    users = graph.users()
    targets = {}
    for index, node in enumerate(graph.nodes):
        if isinstance(node, Rectify):
            readers = [graph.nodes[user] for user in users[index + 1]]
            sizes = [math.prod(sum_.kernel) for sum_ in readers if isinstance(sum_, Sum)]
            spare = math.log2(min(sizes)) / 2 if sizes and len(sizes) == len(readers) else 0
            targets[index] = max(1, activation_bits - math.floor(spare))
    return targets


def _limits(graph: Graph, magnitudes: tuple[float, ...], targets: dict[int, int]) -> list[int]:
    """The most fraction bits that each value may have."""
    limits = [_fitting(magnitude) for magnitude in magnitudes]
    for index in range(len(graph.nodes) - 1, -1, -1):
        node = graph.nodes[index]
        if isinstance(node, Rectify):
            if limits[index + 1] < targets[index]:
                raise no_headroom(node.name, magnitudes[index + 1])
            limits[node.source] = min(limits[node.source], targets[index] + MAX_SHIFT)
        elif not isinstance(node, Linear):
            for source in node.sources:
                limits[source] = min(limits[source], limits[index + 1])
    return limits


def _fitting(magnitude: float) -> int:
    if magnitude <= 0.0:
        return MAX_SCALE
    return min(MAX_SCALE, math.floor(_ROOM - math.log2(magnitude)))


def _bias_limit(node: Linear) -> int:
    """The most fraction bits with which every bias is a number of the ring, unwrapped: SecureNN
    computes in a larger one, where a wrapped bias would be another number."""
    largest = float(np.abs(node.bias).max(initial=0.0))
    if largest <= 0.0:
        return MAX_SCALE
    return min(MAX_SCALE, math.floor(30.99 - math.log2(largest)))


def _weight_bits(node: Linear, room: int, magnitude: float) -> int:
    largest = float(np.abs(node.weight).max(initial=0.0))
    if largest > 0.0:
        room = min(room, math.floor(math.log2((WEIGHT_LIMIT - 1) / largest)))
    used = node.weight[node.weight != 0.0]
    if room < 0 or (used.size and math.sqrt(float(np.mean(used**2))) * 2.0**room < _COARSE):
        raise no_headroom(node.name, magnitude)
    return room


def no_headroom(layer: str, magnitude: float) -> UnsupportedModel:
    return UnsupportedModel(
        f"Layer '{layer}' cannot keep {HEADROOM_BITS} bits of headroom in a 32-bit ring: its "
        f"values may reach {magnitude:.3g}.",
        hint="Normalise the layer (BatchNorm behind it), compile with calibration images, or "
        "with fewer activation bits.",
        layer=layer,
    )


def quantise(node: Linear, weight_bits: int, scale: int) -> LayerWeights:
    """Weights to the nearest unit of 2^-weight_bits, the bias to that of 2^-scale.

    A bias outside the ring wraps: so does the sum that it is part of, and back again.
    """
    bias = np.mod(np.rint(node.bias * 2.0**scale), 2.0**32).astype(np.int64)
    weight = np.rint(node.weight * 2.0**weight_bits).astype(np.int32)
    return LayerWeights(weight, bias.astype(np.uint32).view(np.int32))
