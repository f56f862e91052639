"""Magnitudes: sound intervals, BatchNorm's promise, and the statistics between."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from primia.mpc.compile_bounds import INPUT_BOUND, KAPPA, Extent, extents
from primia.mpc.compile_float import evaluate_graph
from primia.mpc.compile_graph import (
    Addition,
    Conv,
    Flat,
    Graph,
    Linear,
    Maximum,
    Rectify,
    Statistics,
    Sum,
)
from primia.mpc.compile_trace import trace
from primia.mpc.fold import fold
from tests.support.networks import images, residual, settle, vgg


def conv(weight, bias=0.0, source=0, statistics=None, padding=(0, 0), groups=1):
    weight = np.asarray(weight, np.float64)
    offset = np.full(len(weight), bias)
    return Conv("conv", (source,), weight, offset, statistics, (1, 1), padding, groups)


def normal(mean, deviation):
    return Statistics(np.array(mean, np.float64), np.array(deviation, np.float64))


def test_the_image_is_bounded():
    extent = extents(Graph((2, 4, 4), (Rectify("relu", (0,)),)))
    assert extent[0].magnitude == INPUT_BOUND
    assert extent[1].low.tolist() == [0.0, 0.0]
    assert extent[1].magnitude == INPUT_BOUND


def test_interval_of_a_convolution_is_reached():
    weight = np.array([[[[1.0, -2.0], [0.5, 0.0]]]])
    (_, found) = extents(Graph((1, 4, 4), (conv(weight, bias=0.25),)))
    reach = 3.5 * INPUT_BOUND
    assert (found.low[0], found.high[0]) == (0.25 - reach, 0.25 + reach)


def test_padding_brings_zeros_into_a_convolution_of_values_far_from_zero():
    first = conv([[[[0.0]]]], bias=5.0)  # the constant 5
    (_, _, found) = extents(
        Graph((1, 4, 4), (first, conv(-np.ones((1, 1, 3, 3)), source=1, padding=(1, 1))))
    )
    assert (found.low[0], found.high[0]) == (-45.0, 0.0)


def test_groups_are_bounded_apart():
    first = conv([[[[1.0]]], [[[0.0]]]])
    second = conv([[[[1.0]]], [[[1.0]]]], source=1, groups=2)
    assert extents(Graph((1, 4, 4), (first, second)))[-1].high.tolist() == [INPUT_BOUND, 0.0]


def test_a_norm_cuts_the_interval_to_kappa_deviations():
    weight = np.full((2, 1, 3, 3), 10.0)
    (_, found) = extents(Graph((1, 4, 4), (conv(weight, 0.0, 0, normal([1, -1], [0.5, 2])),)))
    np.testing.assert_allclose(found.high, [1 + 0.5 * KAPPA, -1 + 2 * KAPPA])
    np.testing.assert_allclose(found.low, [1 - 0.5 * KAPPA, -1 - 2 * KAPPA])
    assert found.magnitude == 1 + 2 * KAPPA


def test_a_norm_never_widens_a_sound_interval():
    (_, found) = extents(Graph((1, 4, 4), (conv([[[[0.5]]]], 0.0, 0, normal([3.0], [9.0])),)))
    assert found.magnitude == 0.5 * INPUT_BOUND


def test_a_norm_that_contradicts_the_interval_leaves_it_in_order():
    (_, found) = extents(Graph((1, 4, 4), (conv([[[[0.1]]]], 0.0, 0, normal([50.0], [1.0])),)))
    assert found.low[0] <= found.high[0] == pytest.approx(0.4)


@given(mean=st.floats(-4, 4), deviation=st.floats(0.01, 4))
@settings(max_examples=20, deadline=None)
def test_moments_of_a_rectified_normal(mean, deviation):
    graph = Graph((1, 2, 2), (conv([[[[99.0]]]], 0.0, 0, normal([mean], [deviation])),
                              Rectify("relu", (1,))))  # fmt: skip
    found = extents(graph)[-1].statistics
    at = mean + deviation * np.linspace(-12, 12, 200_001)
    weights = np.exp(-0.5 * ((at - mean) / deviation) ** 2)
    weights /= weights.sum()
    first = float(weights @ np.maximum(at, 0))
    second = float(weights @ np.maximum(at, 0) ** 2)
    assert found.mean[0] == pytest.approx(first, rel=1e-3, abs=1e-4)
    assert found.deviation[0] == pytest.approx(math.sqrt(max(second - first**2, 0)), abs=1e-3)


def test_sums_add_intervals_and_statistics():
    nodes = (
        conv([[[[50.0]]]], 0.0, 0, normal([1.0], [1.0])),
        conv([[[[50.0]]]], 0.0, 0, normal([-2.0], [0.5])),
        Addition("add", (1, 2)),
        Sum("pool", (3,), (2, 2), (2, 2), (0, 0)),
    )
    *_, added, pooled = extents(Graph((1, 4, 4), nodes))
    assert (added.statistics.mean[0], added.statistics.deviation[0]) == (-1.0, 1.5)
    assert (added.low[0], added.high[0]) == (-1 - 1.5 * KAPPA, -1 + 1.5 * KAPPA)
    assert (pooled.high[0], pooled.statistics.mean[0]) == (4 * added.high[0], -4.0)


def test_a_flattened_channel_counts_its_positions_as_correlated():
    nodes = (
        conv([[[[50.0]]], [[[50.0]]]], 0.0, 0, normal([0.0, 0.0], [1.0, 2.0])),
        Flat("flat", (1,)),
        Linear("fc", (2,), np.array([[1.0, -1.0, 3.0, 1.0]]), np.zeros(1), None),
    )
    found = extents(Graph((1, 1, 2), nodes))[-1].statistics
    assert found.deviation[0] == pytest.approx(math.hypot(2.0 * 1.0, 4.0 * 2.0))


def test_the_largest_of_several_is_lifted():
    nodes = (
        conv([[[[50.0]]]], 0.0, 0, normal([0.0], [1.0])),
        Maximum("pool", (1,), (3, 3), (1, 1), (0, 0)),
    )
    found = extents(Graph((1, 4, 4), nodes))[-1]
    assert found.statistics.mean[0] == pytest.approx(math.sqrt(2 * math.log(9)))
    assert found.high[0] == KAPPA


def test_magnitude_looks_at_both_ends():
    low, high = np.array([-3.0, 0.0]), np.array([1.0, 2.0])
    assert Extent(low, high, None).magnitude == 3.0
    assert Extent(np.array([1.0]), np.array([2.0]), None).magnitude == 2.0


def test_without_norms_the_interval_holds_for_every_image():
    torch.manual_seed(3)
    graph = fold(trace(vgg(norm=False, size=16).eval(), (3, 16, 16)))
    found = extents(graph)
    corner = np.sign(images((3, 16, 16), 4)) * INPUT_BOUND
    for extent, value in zip(found, evaluate_graph(graph, corner), strict=True):
        assert float(np.abs(value).max()) <= extent.magnitude + 1e-9
        assert extent.statistics is None


def test_with_norms_the_extent_holds_where_their_statistics_do():
    graph = fold(trace(settle(residual(), (3, 32, 32)), (3, 32, 32)))
    found = extents(graph)
    for extent, value in zip(found, evaluate_graph(graph, images((3, 32, 32), 8)), strict=True):
        assert float(np.abs(value).max()) <= extent.magnitude
    assert max(extent.magnitude for extent in found[:-3]) < 4 * KAPPA
