"""Tracing and folding keep what the torch module computes, in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from primia.errors import UnsupportedModel
from primia.mpc.compile_float import evaluate_graph
from primia.mpc.compile_graph import Average, Conv, Flat, Linear, Maximum, Norm, Rectify, Sum
from primia.mpc.compile_trace import trace
from primia.mpc.fold import fold, fold_averages, fold_norms, relu_behind_pooling
from tests.support.networks import LeNet, float_scores, images, residual, settle, small_cnn, vgg

NETWORKS = {
    "residual": (residual, (3, 32, 32)),
    "residual, not square": (residual, (3, 40, 24)),
    "vgg": (vgg, (3, 32, 32)),
    "vgg without norm": (lambda: vgg(norm=False), (3, 32, 32)),
    "small": (small_cnn, (1, 16, 16)),
    "lenet": (LeNet, (1, 28, 28)),
}


def kinds(graph):
    return [node.kind for node in graph.nodes]


@pytest.mark.parametrize("name", NETWORKS)
def test_tracing_and_folding_change_no_output(name):
    build, shape = NETWORKS[name]
    torch.manual_seed(1)
    module = settle(build(), shape)
    batch = images(shape, 3, seed=5)
    traced = trace(module, shape)
    wanted = float_scores(module, batch)
    for graph in (traced, fold(traced)):
        found = evaluate_graph(graph, batch)
        np.testing.assert_allclose(found[-1], wanted, atol=1e-5)  # weights were float32
        assert [value.shape[1:] for value in found] == list(graph.shapes())


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_leaves_only_what_the_plan_knows(name):
    build, shape = NETWORKS[name]
    graph = fold(trace(build().eval(), shape))
    assert not any(isinstance(node, Norm | Average) for node in graph.nodes)
    for index, node in enumerate(graph.nodes):
        before = graph.nodes[node.source - 1] if node.source else None
        assert not (isinstance(node, Maximum) and isinstance(before, Rectify)), index
    names = [node.name for node in graph.nodes]
    assert len(set(names)) == len(names)


def test_a_norm_is_folded_with_its_running_statistics():
    module = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).double().eval()
    conv, norm = module
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
        norm.running_var.copy_(torch.tensor([4.0, 0.25, 1.0]))
        norm.weight.copy_(torch.tensor([2.0, -1.0, 0.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    (folded,) = fold_norms(trace(_headed(module), (2, 4, 4))).nodes[:1]
    assert isinstance(folded, Conv)
    scale = norm.weight.detach().numpy() / np.sqrt(norm.running_var.numpy() + norm.eps)
    np.testing.assert_allclose(
        folded.weight, conv.weight.detach().numpy() * scale[:, None, None, None]
    )
    np.testing.assert_allclose(
        folded.bias,
        (conv.bias.detach().numpy() - norm.running_mean.numpy()) * scale
        + norm.bias.detach().numpy(),
    )
    np.testing.assert_allclose(folded.statistics.mean, [0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_array_equal(folded.statistics.deviation, [2.0, 1.0, 0.0])


def _headed(module, features=48):
    return nn.Sequential(*module, nn.ReLU(), nn.Flatten(), nn.Linear(features, 2)).double().eval()


def test_relu_moves_behind_every_pooling_that_follows():
    module = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(2), nn.Flatten()
    )
    graph = relu_behind_pooling(trace(module.eval(), (1, 18, 18)))
    assert kinds(graph) == ["Conv", "Maximum", "Maximum", "Rectify", "Flat"]
    batch = images((1, 18, 18))
    with torch.no_grad():
        wanted = module(torch.from_numpy(batch)).numpy()
    np.testing.assert_allclose(evaluate_graph(graph, batch)[-1], wanted, atol=1e-6)


class Shared(nn.Module):
    """A ReLU whose result is pooled and read again: it must stay where it is."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()
        self.pool, self.fc = nn.MaxPool2d(3, 1, 1), nn.Linear(128, 2)

    def forward(self, x):
        y = self.relu(self.conv(x))
        return self.fc(torch.flatten(y + self.pool(y), 1))


def test_a_relu_with_another_reader_stays_in_front_of_the_pooling():
    graph = fold(trace(Shared().eval(), (1, 8, 8)))
    assert kinds(graph) == ["Conv", "Rectify", "Maximum", "Addition", "Flat", "Linear"]


def test_average_pooling_hands_its_division_to_the_next_linear_layer():
    module = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(3, 2), nn.Flatten(), nn.Linear(18, 2)
    ).eval()
    graph = fold_averages(trace(module, (1, 9, 9)))
    assert kinds(graph) == ["Conv", "Rectify", "Sum", "Flat", "Linear"]
    np.testing.assert_allclose(graph.nodes[-1].weight, module[-1].weight.detach().numpy() / 9)
    assert isinstance(graph.nodes[2], Sum)
    assert (graph.nodes[2].kernel, graph.nodes[2].stride) == ((3, 3), (2, 2))


def test_two_averages_in_a_row_multiply_their_divisions():
    module = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AvgPool2d(2), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(8, 2),
    ).eval()  # fmt: skip
    graph = fold(trace(module, (1, 8, 8)))
    np.testing.assert_allclose(graph.nodes[-1].weight, module[-1].weight.detach().numpy() / 16)


def test_an_average_over_a_single_pixel_vanishes():
    module = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d((4, None)), nn.Flatten()
    )
    graph = trace(module.eval(), (1, 4, 4))
    assert kinds(graph) == ["Conv", "Rectify", "Flat"]


class Means(nn.Module):
    def forward(self, x):
        return x.mean((2, 3), keepdim=True)


def test_the_mean_over_height_and_width_is_average_pooling():
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), Means(), nn.Flatten(), nn.Linear(2, 2))
    graph = fold(trace(module.eval(), (1, 4, 6)))
    assert [type(node) for node in graph.nodes] == [Conv, Rectify, Sum, Flat, Linear]
    assert graph.nodes[2].kernel == (4, 6)


def test_an_average_without_a_linear_layer_behind_it_is_refused_by_name():
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UnsupportedModel, match=r"'3' \(average pooling\)"):
        fold(trace(module.eval(), (1, 4, 4)))


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(1, 2, 3, 2, 1), nn.AvgPool2d(2), nn.Linear(8, 2)
        self.lift = nn.Conv2d(1, 2, 1)

    def forward(self, x):
        a, b = torch.relu(self.lift(x)), torch.relu(self.conv(x))
        return self.fc(torch.flatten(self.pool(a) + b, 1))


def test_adding_an_averaged_and_a_plain_value_is_refused_by_name():
    with pytest.raises(UnsupportedModel, match=r"'add' .*only one of its inputs is average-pooled"):
        fold(trace(Mixed().eval(), (1, 4, 4)))


@given(
    gamma=st.lists(st.floats(-3, 3), min_size=2, max_size=2),
    variance=st.lists(st.floats(0, 9), min_size=2, max_size=2),
    groups=st.sampled_from([1, 2]),
    stride=st.integers(1, 2),
)
@settings(max_examples=25, deadline=None)
def test_norms_fold_into_every_convolution(gamma, variance, groups, stride):
    module = _headed(
        [nn.Conv2d(2, 2, 3, stride, 1, groups=groups), nn.BatchNorm2d(2)],
        features=2 * (8 // stride) ** 2,
    )
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor(gamma))
        module[1].running_var.copy_(torch.tensor(variance))
        module[1].running_mean.copy_(torch.tensor([0.3, -0.7]))
    batch = images((2, 8, 8), 2)
    found = evaluate_graph(fold(trace(module, (2, 8, 8))), batch)[-1]
    wanted = float_scores(module, batch)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9 * (1 + np.abs(wanted).max()))


def uneven(size, made, between=None):
    """Adaptive pooling of (2, size) to another size, then fully connected."""
    layers = [nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(made), nn.Flatten()]
    layers += [between] if between else []
    inputs = 2 * made[0] * made[1]
    return nn.Sequential(*layers, nn.Linear(inputs, 3)).eval(), (1, *size)


@pytest.mark.parametrize(
    ("size", "made"),
    [((1, 1), (7, 7)), ((2, 3), (7, 7)), ((8, 8), (7, 7)), ((4, 9), (3, 7)), ((5, 4), (7, 4))],
)
def test_uneven_pooling_joins_the_fully_connected_layer(size, made):
    torch.manual_seed(3)
    module, shape = uneven(size, made, nn.Dropout())
    graph = fold(trace(module, shape))
    assert kinds(graph) == ["Conv", "Rectify", "Flat", "Linear"]
    assert graph.nodes[-1].weight.shape == (3, 2 * size[0] * size[1])
    batch = images(shape, 4, seed=5)
    wanted = float_scores(module, batch)
    for found in (trace(module, shape), graph):
        np.testing.assert_allclose(evaluate_graph(found, batch)[-1], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "shape", "reason"),
    [
        (*uneven((12, 12), (7, 7)), "much larger"),
        (*uneven((4, 4), (3, 3), nn.ReLU()), "no flattened fully connected layer"),
    ],
)
def test_uneven_pooling_that_nothing_takes_up_is_refused(module, shape, reason):
    with pytest.raises(UnsupportedModel, match=rf"'2' \(AdaptiveAvgPool2d\).*{reason}"):
        fold(trace(module, shape))
