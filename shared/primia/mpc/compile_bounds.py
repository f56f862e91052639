"""How large can every value get? Data-free, from BatchNorm's statistics; per channel.

Each value carries two descriptions of every channel of its true content:
- an interval [low, high], sound for inputs in [-INPUT_BOUND, INPUT_BOUND] wherever no statistics
  entered it;
- where BatchNorm was met on every path, a mean and a standard deviation.

Behind a BatchNorm the channel has mean beta and deviation |gamma|, and the interval is cut to
beta ± KAPPA |gamma|. A linear layer without BatchNorm takes its interval from its input's, cut to
mean ± KAPPA deviation where its input has statistics (positions of one channel counted as fully
correlated, channels as uncorrelated). Additions add intervals. The two bits of headroom on top
mean that a value must exceed 4 KAPPA = 32 deviations before the ring overflows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from primia.mpc.compile_graph import (
    Addition,
    Conv,
    Floats,
    Graph,
    Linear,
    Maximum,
    Node,
    Rectify,
    Statistics,
    Sum,
)

# Normalised pixels: [0, 1] less a mean near 1/2 over a deviation near 1/4 stays within +-2.7.
INPUT_BOUND = 4.0
# Deviations within which a channel is expected to stay; the headroom multiplies them by four.
KAPPA = 8.0


@dataclass(frozen=True)
class Extent:
    """Per channel: interval and, where known, statistics. A flattened image keeps one entry a
    channel, for all its positions."""

    low: Floats
    high: Floats
    statistics: Statistics | None

    @property
    def magnitude(self) -> float:
        """The largest absolute value that any channel is expected to take."""
        return float(max(-self.low.min(), self.high.max(), 0.0))


def extents(graph: Graph) -> tuple[Extent, ...]:
    """The extent of every value of a folded graph, the image first."""
    channels = graph.input_shape[0]
    found = [Extent(np.full(channels, -INPUT_BOUND), np.full(channels, INPUT_BOUND), None)]
    for node in graph.nodes:
        inputs = [found[source] for source in node.sources]
        found.append(_extent(node, inputs))
    return tuple(found)


def _extent(node: Node, inputs: Sequence[Extent]) -> Extent:
    first = inputs[0]
    if isinstance(node, Linear):
        return _linear(node, first)
    if isinstance(node, Addition):
        return _sum(first, inputs[1])
    if isinstance(node, Sum):
        return _scaled(first, node.kernel[0] * node.kernel[1])
    if isinstance(node, Rectify):
        return _rectified(first)
    if isinstance(node, Maximum):
        return Extent(first.low, first.high, _largest(first.statistics, node))
    return first


def _linear(node: Linear, given: Extent) -> Extent:
    low, high = _interval(node, given)
    statistics = node.statistics or _spread(node, given.statistics)
    if statistics is not None:
        reach = KAPPA * statistics.deviation
        low = np.maximum(low, np.minimum(statistics.mean - reach, high))
        high = np.minimum(high, np.maximum(statistics.mean + reach, low))
    return Extent(low, high, statistics)


def _interval(node: Linear, given: Extent) -> tuple[Floats, Floats]:
    """Interval arithmetic; zero padding only brings terms nearer to zero, so it may join them."""
    low, high = given.low, given.high
    if isinstance(node, Conv) and node.padding != (0, 0):
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    up = _apply(node, np.maximum(node.weight, 0.0), np.minimum(node.weight, 0.0), high, low)
    down = _apply(node, np.maximum(node.weight, 0.0), np.minimum(node.weight, 0.0), low, high)
    return node.bias + down, node.bias + up


def _apply(node: Linear, positive: Floats, negative: Floats, a: Floats, b: Floats) -> Floats:
    """Per output: positive weights times ``a`` plus negative weights times ``b``, summed."""
    return _over_channels(node, _positions(node, positive, a), a) + _over_channels(
        node, _positions(node, negative, b), b
    )


def _groups(node: Linear) -> int:
    return node.groups if isinstance(node, Conv) else 1


def _positions(node: Linear, weight: Floats, channels: Floats) -> Floats:
    """The weight summed over each channel's positions, (out, channels / groups)."""
    return np.asarray(weight.reshape(len(weight), len(channels) // _groups(node), -1).sum(axis=2))


def _over_channels(node: Linear, weight: Floats, channels: Floats) -> Floats:
    groups = _groups(node)
    parts = zip(np.split(weight, groups), np.split(channels, groups), strict=True)
    return np.concatenate([part @ values for part, values in parts])  # (out,)


def _spread(node: Linear, given: Statistics | None) -> Statistics | None:
    if given is None:
        return None
    mean = node.bias + _over_channels(node, _positions(node, node.weight, given.mean), given.mean)
    reach = _positions(node, np.abs(node.weight), given.mean) ** 2
    return Statistics(mean, np.sqrt(_over_channels(node, reach, given.deviation**2)))


def _sum(left: Extent, right: Extent) -> Extent:
    statistics = None
    if left.statistics and right.statistics:
        statistics = Statistics(
            left.statistics.mean + right.statistics.mean,
            left.statistics.deviation + right.statistics.deviation,
        )
    return Extent(left.low + right.low, left.high + right.high, statistics)


def _scaled(given: Extent, factor: float) -> Extent:
    statistics = given.statistics
    if statistics:
        statistics = Statistics(statistics.mean * factor, statistics.deviation * factor)
    return Extent(given.low * factor, given.high * factor, statistics)


def _rectified(given: Extent) -> Extent:
    statistics = given.statistics
    if statistics:
        statistics = _rectified_normal(statistics)
    return Extent(np.maximum(given.low, 0.0), np.maximum(given.high, 0.0), statistics)


def _rectified_normal(given: Statistics) -> Statistics:
    """Moments of max(0, X) for X normal: mean m P(m/s) + s p(m/s), from the standard normal's
    distribution P and density p."""
    mean, deviation = given.mean, np.maximum(given.deviation, 1e-12)
    t = mean / deviation
    below = 0.5 * (1.0 + np.array([math.erf(value / math.sqrt(2.0)) for value in t]))
    density = np.exp(-0.5 * t**2) / math.sqrt(2.0 * math.pi)
    first = mean * below + deviation * density
    second = (mean**2 + deviation**2) * below + mean * deviation * density
    return Statistics(first, np.sqrt(np.maximum(second - first**2, 0.0)))


def _largest(given: Statistics | None, node: Maximum) -> Statistics | None:
    """The maximum of k normals lies sqrt(2 ln k) deviations up at most, and spreads no wider."""
    if given is None:
        return None
    lift = math.sqrt(2.0 * math.log(node.kernel[0] * node.kernel[1]))
    return Statistics(given.mean + lift * given.deviation, given.deviation)
