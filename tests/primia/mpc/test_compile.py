"""Whole models: the oracle on the compiled model against the float model."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from primia.errors import InvalidInput, UnsupportedModel
from primia.learning.models import create_model
from primia.learning.spec import ModelSpec
from primia.learning.vision import torchvision_models
from primia.mpc.compile import compile_model, verify_headroom
from primia.mpc.compiled import CompiledModel
from primia.mpc.oracle import decode_scores, encode, evaluate
from primia.mpc.plan import MaxPool, Narrow, Plan, Relu
from tests.support.inference import words
from tests.support.networks import (
    LeNet,
    float_scores,
    images,
    networks,
    residual,
    settle,
    small_cnn,
    vgg,
)

# Logits of these networks spread by about 0.5, as in the protocol's own measurements.
CLOSE = 0.01


def resnet18(channels):
    module = torchvision_models().resnet18(weights=None, num_classes=3)
    if channels == 1:
        module.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return module


def compiled_scores(model, batch, shares=None):
    found = evaluate(model, encode(model.plan, batch), shares)
    assert max(found.peaks.values()) < 0.5
    return decode_scores(model.plan, found.scores)


def random_shares(layer, shape):
    return words(sum(layer.encode()), shape)


@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 64), (1, 96)])
def test_resnet18_keeps_its_scores(channels, size):
    shape = (channels, size, size)
    module = settle(resnet18(channels), shape, passes=4)
    batch = images(shape, 4, seed=7)
    model = compile_model(module, shape)
    wanted = float_scores(module, batch)
    assert 0.1 < np.ptp(wanted, axis=1).max() < 3
    for shares in (None, random_shares):
        found = compiled_scores(model, batch, shares)
        assert np.abs(found - wanted).max() < CLOSE
        np.testing.assert_array_equal(found.argmax(axis=1), wanted.argmax(axis=1))
    assert model.plan.requests == 19
    assert len(model.weights) == 21


@pytest.mark.slow
def test_resnet18_at_224_keeps_its_scores_and_its_costs():
    shape = (3, 224, 224)
    module = settle(resnet18(3), shape, passes=1)
    model = compile_model(module, shape)
    batch = images(shape, 1, seed=7)
    assert np.abs(compiled_scores(model, batch) - float_scores(module, batch)).max() < CLOSE
    bill = model.plan.bill()
    assert (bill.requests, bill.comparisons) == (19, 3_913_728)
    assert bill.request_bytes + bill.response_bytes < 16e6
    assert bill.key_bytes < 0.75e9


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (residual, (3, 32, 32)),
        (residual, (3, 40, 24)),
        (vgg, (3, 32, 32)),
        (small_cnn, (1, 16, 16)),
        (lambda: LeNet(size=20), (1, 20, 20)),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)),
         (1, 4, 4)),
    ],
    ids=["residual", "not square", "vgg with norms", "small cnn", "lenet", "perceptron"],
)  # fmt: skip
def test_models_compile_without_calibration(build, shape):
    torch.manual_seed(2)
    module = settle(build(), shape)
    batch = images(shape, 6, seed=8)
    wanted = float_scores(module, batch)
    found = compiled_scores(compile_model(module, shape), batch, random_shares)
    assert np.abs(found - wanted).max() < CLOSE


def test_the_grid_s_own_small_model_compiles():
    spec = ModelSpec(
        architecture="small_cnn", channels=1, image_size=32, classes=("a", "b"), seed=3
    )
    module = create_model(spec)
    settle(module, (1, 32, 32))
    batch = images((1, 32, 32), 4)
    found = compiled_scores(compile_model(module, (1, 32, 32)), batch)
    assert np.abs(found - float_scores(module, batch)).max() < CLOSE


def deep_vgg():
    """Too deep for interval bounds: no BatchNorm anywhere."""
    layers, given_width = [], 3
    for width in (16, 16, 32, 32, 32, 32):
        layers += [nn.Conv2d(given_width, width, 3, padding=1), nn.ReLU()]
        given_width = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3))


def test_a_deep_model_without_norms_needs_calibration():
    shape = (3, 16, 16)
    module = settle(deep_vgg(), shape)
    with pytest.raises(
        UnsupportedModel, match=r"'(8|10)' cannot keep 2 bits of headroom"
    ) as caught:
        compile_model(module, shape)
    assert "calibration" in caught.value.hint
    model = compile_model(module, shape, calibration=images(shape, 8, seed=20))
    batch = images(shape, 6, seed=21)
    found = compiled_scores(model, batch)
    assert np.abs(found - float_scores(module, batch)).max() < CLOSE


def test_calibration_beyond_the_statistics_costs_weight_bits():
    shape = (3, 32, 32)
    module = settle(residual(), shape)
    plain, wide = (
        compile_model(module, shape, calibration=size * images(shape, 2)) for size in (1, 60)
    )
    first = [model.plan.ops[0].weight_bits for model in (plain, wide)]
    assert plain.plan.digest() == compile_model(module, shape).plan.digest()
    assert first[1] < first[0]


def test_a_model_that_cannot_keep_headroom_is_refused_by_name():
    shape = (3, 32, 32)
    module = settle(residual(), shape)
    with torch.no_grad():
        module[5].bn1.weight.fill_(3e4)
        module[5].conv1.weight.mul_(1e5)
    with pytest.raises(UnsupportedModel, match=r"'5.conv1' cannot keep") as caught:
        compile_model(module, shape)
    assert caught.value.extra["layer"] == "5.conv1"


def test_images_that_use_up_the_headroom_are_noticed_by_layer():
    """The float image is far outside what normalised pixels reach."""
    shape = (3, 32, 32)
    module = settle(residual(), shape)
    model = compile_model(module, shape)
    verify_headroom(model, images(shape, 2))
    with pytest.raises(UnsupportedModel, match=r"'[0-9a-z.]+' cannot keep .* may reach \d"):
        verify_headroom(model, 200 * images(shape, 2))


def test_the_plan_of_a_residual_network():
    model = compile_model(settle(residual(), (3, 32, 32)), (3, 32, 32))
    plan = model.plan
    scales, widths = plan.scales(), plan.widths()
    names = ["0", "3.narrow", "3", "4.conv1"]  # the ReLU in the pooling's last gate
    assert [op.layer for op in plan.ops[:4]] == names
    assert isinstance(plan.ops[1], Narrow)
    assert isinstance(plan.ops[2], MaxPool)
    assert plan.ops[2].relu
    assert scales[2] == scales[3] == 10
    assert widths[2:4] == (42 - scales[1], 32)
    for index, op in enumerate(plan.ops):
        if isinstance(op, Relu):
            last = index == max(i for i, o in enumerate(plan.ops) if isinstance(o, Relu))
            assert scales[index + 1] == (8 if last else 10)  # 4 x 4 average behind the last
    assert {op.layer for op, _ in plan.linear()} == set(model.weights)
    assert Plan.parse(plan.to_json()) == plan
    assert CompiledModel.from_bytes(model.to_bytes()).plan.digest() == plan.digest()


@pytest.mark.parametrize("result", ["scores", "label"])
def test_the_result_is_part_of_the_plan(result):
    module = settle(small_cnn(), (1, 16, 16))
    plan = compile_model(module, (1, 16, 16), result=result).plan
    assert plan.result == result
    assert len(plan.gates()) == 3 + (result == "label")


def test_compiling_is_deterministic_and_leaves_the_module_alone():
    module = settle(residual(), (3, 32, 32))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    first, second = (compile_model(module, (3, 32, 32)) for _ in range(2))
    assert first.to_bytes() == second.to_bytes()
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert not module.training


@pytest.mark.parametrize("bits", [8, 11, 12])
def test_activation_bits_can_be_chosen(bits):
    module = settle(residual(), (3, 32, 32))
    model = compile_model(module, (3, 32, 32), activation_bits=bits)
    assert model.plan.activation_bits == bits
    batch = images((3, 32, 32), 4)
    found = compiled_scores(model, batch)
    assert np.abs(found - float_scores(module, batch)).max() < 4 * CLOSE


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"input_shape": (16, 16)}, "not .channels, height, width"),
        ({"input_shape": (1, 0, 16)}, "not .channels, height, width"),
        ({"activation_bits": 3}, "from 4 to 16"),
        ({"activation_bits": 17}, "from 4 to 16"),
        ({"calibration": np.zeros((1, 1, 8, 8))}, "Calibration images are"),
        ({"calibration": np.zeros((0, 1, 16, 16))}, "Calibration images are"),
        ({"calibration": np.full((1, 1, 16, 16), np.nan)}, "not finite"),
        ({"result": "logits"}, "'scores' or 'label'"),
    ],
)
def test_unusable_arguments_are_refused(arguments, match):
    module = settle(small_cnn(), (1, 16, 16))
    shape = arguments.pop("input_shape", (1, 16, 16))
    with pytest.raises(InvalidInput, match=match):
        compile_model(module, shape, **arguments)


@given(network=networks(), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_random_networks_keep_their_scores(network, seed):
    module, shape = network
    settle(module, shape, seed)
    batch = images(shape, 3, seed)
    wanted = float_scores(module, batch)
    for calibration in (None, batch):
        model = compile_model(module, shape, calibration=calibration)
        found = compiled_scores(model, batch, random_shares)
        assert np.abs(found - wanted).max() < 2 * CLOSE * max(1.0, np.ptp(wanted))


def test_models_compile_side_by_side():
    """While torch.fx traces, no other module of the process may be called."""
    modules = [settle(residual(), (3, 24, 24), seed) for seed in range(4)]
    alone = [compile_model(module, (3, 24, 24)).to_bytes() for module in modules]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda m: compile_model(m, (3, 24, 24)).to_bytes(), modules * 4))
    assert found == alone * 4
