"""Bringing layers to one magnitude changes no result by a bit, and leaves what is fixed."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from primia.mpc.compile_equalise import TARGET, equalise
from primia.mpc.compile_float import evaluate_graph
from primia.mpc.compile_trace import trace
from primia.mpc.fold import fold
from tests.support.networks import Block, images, residual, vgg

SHAPE = (3, 16, 16)


def measured(graph, batch):
    return tuple(float(np.abs(value).max()) for value in evaluate_graph(graph, batch))


def scaled(module, factor):
    """Every layer's weights grown or shrunk."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                part.weight.mul_(factor)
    return fold(trace(module.eval(), SHAPE))


@settings(max_examples=12, deadline=None)
@given(st.floats(0.01, 30))
def test_no_result_changes_by_a_bit(factor):
    torch.manual_seed(4)
    graph = scaled(vgg(norm=False, size=16), factor)
    batch = images(SHAPE, 2, seed=1)
    magnitudes = measured(graph, batch)
    found, promised = equalise(graph, magnitudes)
    np.testing.assert_array_equal(
        evaluate_graph(found, batch)[-1], evaluate_graph(graph, batch)[-1]
    )
    assert measured(found, batch) == promised
    assert promised[0] == magnitudes[0]
    assert promised[-1] == magnitudes[-1]
    linear = [node for node in found.nodes if node.kind in ("Conv", "Linear")]
    assert [node.name for node in linear] == [
        node.name for node in graph.nodes if node.kind in ("Conv", "Linear")
    ]
    for index, node in enumerate(found.nodes[:-1]):
        if node in linear:
            assert TARGET / 2 < promised[index + 1] <= TARGET


def test_what_batchnorm_has_scaled_is_left_alone():
    graph = scaled(residual(), 50)
    magnitudes = measured(graph, images(SHAPE, 2))
    found, promised = equalise(graph, magnitudes)
    assert promised == magnitudes
    for left, right in zip(found.nodes, graph.nodes, strict=True):
        assert left.name == right.name
        if left.kind in ("Conv", "Linear"):
            np.testing.assert_array_equal(left.weight, right.weight)


def test_what_an_addition_joins_shares_a_factor():
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), Block(4, 4, 1), nn.Flatten()]
    module = nn.Sequential(*layers, nn.Linear(4 * 14 * 14, 2))
    for name in ("bn1", "bn2"):
        setattr(module[2], name, nn.Identity())
    graph = scaled(module, 8)
    batch = images(SHAPE, 2)
    found, promised = equalise(graph, measured(graph, batch))
    np.testing.assert_array_equal(
        evaluate_graph(found, batch)[-1], evaluate_graph(graph, batch)[-1]
    )
    ratios = [a / b for a, b in zip(measured(graph, batch), promised, strict=True)]
    for index, node in enumerate(graph.nodes):
        if node.kind == "Addition":
            assert len({ratios[index + 1], *(ratios[source] for source in node.sources)}) == 1
            assert ratios[index + 1] > 1
