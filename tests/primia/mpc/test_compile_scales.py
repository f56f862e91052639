"""Fraction bits: as many as the headroom leaves, the same on both sides of an addition."""

import numpy as np
import pytest
import torch
from torch import nn

from primia.errors import UnsupportedModel
from primia.mpc.compile import compile_model
from primia.mpc.compile_graph import Addition, Conv, Flat, Graph, Linear, Maximum, Rectify, Sum
from primia.mpc.compile_scales import choose_scales, quantise

PAIR = ((1, 1), (0, 0), 1)


def conv(source, size=0.5, name="conv"):
    return Conv(name, (source,), np.full((1, 1, 1, 1), size), np.zeros(1), None, *PAIR)


def chain(*nodes):
    return Graph((1, 8, 8), nodes)


@pytest.mark.parametrize(
    ("magnitude", "bits"), [(32.0, 14), (31.9, 14), (16.0, 15), (16.1, 14), (8.0, 16), (1.0, 16)]
)
def test_a_pre_activation_stays_below_a_quarter_of_half_the_ring(magnitude, bits):
    scales = choose_scales(chain(conv(0), Rectify("relu", (1,))), (4.0, magnitude, magnitude), 10)
    # 0.5 at 16 bits is the last power of two below 2^16.
    assert scales.weights == {0: bits}
    assert scales.values == (10, 10 + bits, 10)
    assert magnitude * 2.0 ** scales.values[1] <= 2**29


def test_large_weights_lose_bits():
    scales = choose_scales(chain(conv(0, 3.0)), (4.0, 1.0), 10)
    assert scales.weights[0] == 14
    assert 3.0 * 2**15 > 2**16 > 3.0 * 2**14


def test_weights_below_the_limit_after_rounding():
    node = conv(0, 1.99999999)
    scales = choose_scales(chain(node), (4.0, 1.0), 10)
    assert int(quantise(node, scales.weights[0], scales.values[1]).weight.max()) < 2**16


def test_the_bound_of_a_sum_binds_both_its_inputs():
    graph = chain(conv(0), conv(0, name="other"), Addition("add", (1, 2)), Rectify("relu", (3,)))
    scales = choose_scales(graph, (4.0, 4.0, 64.0, 66.0, 66.0), 10)
    assert scales.values == (10, 22, 22, 22, 10)


def test_an_activation_joins_a_sum_by_shifting():
    graph = chain(
        conv(0), Rectify("relu", (1,)), conv(2, name="second"), Addition("add", (3, 2)),
        Rectify("out", (4,)),
    )  # fmt: skip
    scales = choose_scales(graph, (4.0, 16.0, 16.0, 16.0, 32.0, 32.0), 10)
    assert scales.values == (10, 25, 10, 24, 24, 10)


def test_pooling_keeps_the_scale():
    graph = chain(conv(0), Maximum("max", (1,), (2, 2), (2, 2), (0, 0)), Rectify("relu", (2,)))
    assert choose_scales(graph, (4.0, 16.0, 16.0, 16.0), 10).values == (10, 25, 25, 10)


@pytest.mark.parametrize(("kernel", "spare"), [(1, 0), (2, 1), (4, 2), (7, 2), (8, 3), (64, 6)])
def test_a_relu_before_an_average_gives_bits_to_the_weights_behind(kernel, spare):
    pool = Sum("sum", (2,), (kernel, kernel), (1, 1), (0, 0))
    graph = Graph((1, kernel, kernel), (
        conv(0), Rectify("relu", (1,)), pool, Flat("flat", (3,)),
        Linear("fc", (4,), np.full((2, 1), 0.25 / kernel**2), np.zeros(2), None),
    ))  # fmt: skip
    total = 4.0 * kernel**2
    scales = choose_scales(graph, (4.0, 4.0, 4.0, total, total, 4.0), 10)
    assert scales.values[2:5] == (10 - spare,) * 3
    assert scales.weights[4] == 27 - (10 - spare)


def test_a_relu_that_is_read_elsewhere_keeps_its_bits():
    graph = chain(
        conv(0), Rectify("relu", (1,)), Sum("sum", (2,), (2, 2), (1, 1), (0, 0)),
        Sum("other", (2,), (2, 2), (1, 1), (0, 0)), conv(2, name="second"),
    )  # fmt: skip
    assert choose_scales(graph, (4.0,) * 6, 10).values[2] == 10


def refused(graph, magnitudes, bits=10):
    with pytest.raises(UnsupportedModel) as caught:
        choose_scales(graph, magnitudes, bits)
    assert "headroom" in caught.value.detail
    assert "BatchNorm" in caught.value.hint
    return caught.value.extra["layer"]


def test_a_layer_whose_weights_would_be_too_coarse_is_refused_by_name():
    assert refused(chain(conv(0, name="features.7")), (4.0, 2.0**15)) == "features.7"


def test_an_activation_that_does_not_fit_is_refused_by_name():
    graph = chain(conv(0), Rectify("act", (1,)))
    assert refused(graph, (4.0, 4.0, 2.0**20)) == "act"


def test_the_branch_of_a_sum_is_refused_by_name():
    graph = chain(conv(0), conv(0, name="wide"), Addition("add", (1, 2)))
    assert refused(graph, (4.0, 4.0, 2.0**16, 2.0**16)) in ("conv", "wide")


def test_a_layer_of_zeros_fits():
    assert choose_scales(chain(conv(0, 0.0)), (4.0, 0.0), 10).values[1] <= 30


def test_quantising_rounds_to_the_nearest_and_wraps_the_bias():
    node = Linear("fc", (0,), np.array([[0.3, -0.7]]), np.array([1.0]), None)
    found = quantise(node, 4, 14)
    assert found.weight.tolist() == [[5, -11]]
    assert found.bias.tolist() == [1 << 14]
    assert (found.weight.dtype, found.bias.dtype) == (np.int32, np.int32)
    wide = Linear("fc", (0,), np.array([[0.3]]), np.array([2.0**17, -(2.0**18) - 1]), None)
    bias = quantise(wide, 4, 14).bias
    assert bias.tolist() == [-(2**31), -(2**14)]


def test_a_large_bias_takes_weight_bits_and_never_wraps():
    """A BatchNorm of a large mean over a small deviation folds into a bias beyond its outputs."""
    norm = nn.BatchNorm2d(4)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        norm,
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).eval()
    with torch.no_grad():
        norm.running_mean.fill_(128.0)
    model = compile_model(module, (1, 8, 8))
    bias = model.weights["0"].bias
    scale = model.plan.scales()[1]
    np.testing.assert_allclose(bias / 2.0**scale, -128.0, rtol=1e-3)
    assert scale < 25
