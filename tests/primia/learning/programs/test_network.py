"""A program as a torch module, held against the sizes that were followed and against torch.nn."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from primia.errors import InvalidInput
from primia.learning.accounting import check_norm
from primia.learning.config import TrainingConfig
from primia.learning.memory import training_bytes
from primia.learning.models import create_model, flatten, load_model, state_layout
from primia.learning.programs.document import Program
from primia.learning.programs.network import Network
from primia.learning.programs.shapes import alive, cost, follow
from primia.learning.spec import ModelSpec
from primia.mpc.compile import compile_model
from tests.support.programs import own_program

# Each by itself on maps of (8, 12, 10); what torch says of the same.
ONE_STEP = [
    ({"op": "relu6"}, functional.relu6),
    ({"op": "gelu_tanh"}, lambda x: functional.gelu(x, approximate="tanh")),
    ({"op": "softplus"}, functional.softplus),
    ({"op": "elu", "constant": 0.5}, lambda x: functional.elu(x, 0.5)),
    ({"op": "leaky_relu", "constant": 0.1}, lambda x: functional.leaky_relu(x, 0.1)),
    ({"op": "affine", "factor": -2.0, "shift": 1.0}, lambda x: 1 - 2 * x),
    (
        {"op": "max_pool2d", "kernel": [3, 2], "stride": [2, 3], "padding": [1, 0], "ceil": True},
        lambda x: functional.max_pool2d(x, (3, 2), (2, 3), (1, 0), ceil_mode=True),
    ),
    (
        {"op": "avg_pool2d", "kernel": [5, 3], "stride": [4, 4], "padding": [2, 1], "ceil": True,
         "border_counts": False},
        lambda x: functional.avg_pool2d(x, (5, 3), 4, (2, 1), True, False),
    ),
    (
        {"op": "adaptive_avg_pool2d", "size": [5, 3]},
        lambda x: functional.adaptive_avg_pool2d(x, (5, 3)),
    ),
    ({"op": "pad", "sides": [1, 2, 3, 0]}, lambda x: functional.pad(x, (1, 2, 3, 0))),
    ({"op": "flatten", "start": 2}, lambda x: x.flatten(2)),
    ({"op": "reshape", "shape": [4, 0, 5]}, lambda x: x.reshape(3, 4, -1, 5)),
    ({"op": "permute", "dimensions": [3, 1, 2]}, lambda x: x.permute(0, 3, 1, 2)),
    ({"op": "mean", "dimensions": [3, 1], "keep": True}, lambda x: x.mean((3, 1), True)),
    ({"op": "mean", "dimensions": [2]}, lambda x: x.mean(2)),
    ({"op": "slice", "dimension": 2, "start": 1, "stop": 12, "step": 4}, lambda x: x[:, :, 1:12:4]),
    ({"op": "add", "of": [1, 1]}, lambda x: x + x),
    ({"op": "divide", "of": [1, 1]}, lambda x: x / x),
    ({"op": "concatenate", "of": [1, 1, 1], "dimension": 3}, lambda x: torch.cat([x, x, x], 3)),
]  # fmt: skip


def program(layers, steps, channels=1, size=(12, 10)) -> Program:
    return Program.model_validate({"input": [channels, *size], "layers": layers, "steps": steps})


@pytest.mark.parametrize(
    ("step", "torchs"), ONE_STEP, ids=lambda each: "" if callable(each) else str(each)[:40]
)
def test_a_step_is_what_torch_has_and_as_large_as_was_followed(step, torchs):
    """A convolution that copies the image stands before it, since a program has a layer."""
    copy = {
        "kind": "conv2d",
        "path": "copy",
        "given": 1,
        "made": 8,
        "kernel": [1, 1],
        "bias": False,
    }
    made = program([copy], [{"op": "layer", "layer": "copy", "of": 0}, {"of": 1, **step}])
    network = Network(made)
    with torch.no_grad():
        network.copy.weight.copy_(torch.arange(1.0, 9.0).reshape(8, 1, 1, 1))
        image = torch.linspace(-1, 1, 3 * 120).reshape(3, 1, 12, 10)
        given = network.copy(image)
        found, wanted = network(image), torchs(given)
    assert torch.allclose(found, wanted, atol=1e-6, equal_nan=True)
    assert tuple(found.shape)[1:] == follow(made)[-1]


LAYERS = [
    ({"kind": "conv2d", "given": 1, "made": 6, "kernel": [3, 2], "stride": [2, 1],
      "padding": [1, 0], "dilation": [2, 1]}, nn.Conv2d(1, 6, (3, 2), (2, 1), (1, 0), (2, 1))),
    ({"kind": "linear", "given": 10, "made": 3, "bias": False}, nn.Linear(10, 3, bias=False)),
    ({"kind": "batch_norm", "channels": 1}, nn.BatchNorm2d(1)),
    ({"kind": "group_norm", "channels": 1, "groups": 1, "affine": False},
     nn.GroupNorm(1, 1, affine=False)),
    ({"kind": "layer_norm", "shape": [12, 10]}, nn.LayerNorm((12, 10))),
    ({"kind": "dropout", "rate": 0.5, "channels": True}, nn.Dropout2d(0.5)),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "torchs"), LAYERS, ids=lambda each: str(each)[:30])
def test_a_layer_is_torchs_own(layer, torchs):
    made = program([{**layer, "path": "it"}], [{"op": "layer", "layer": "it", "of": 0}])
    network = Network(made)
    built = network.get_submodule("it")
    assert (type(built), repr(built)) == (type(torchs), repr(torchs))
    image = torch.zeros(2, 1, 12, 10)
    assert tuple(network(image).shape)[1:] == follow(made)[-1]
    counted = cost(made)
    assert counted.parameters == sum(each.numel() for each in network.parameters())
    floats = [each.numel() for each in network.buffers() if each.is_floating_point()]
    assert counted.buffers == sum(floats)


def test_a_layer_named_like_something_of_torchs_is_refused():
    layer = {"kind": "linear", "path": "forward", "given": 10, "made": 2}
    with pytest.raises(InvalidInput, match="'forward' has a name that torch uses"):
        Network(program([layer], [{"op": "layer", "layer": "forward", "of": 0}]))


def spec(**changes) -> ModelSpec:
    made, _ = own_program(batch_norm=changes.pop("batch_norm", False))
    values = {"architecture": "program", "program": made, "classes": ("a", "b"), "image_size": 16}
    return ModelSpec.model_validate({**values, **changes})


def test_a_spec_with_a_program_survives_json_and_gives_a_model():
    made = spec()
    assert ModelSpec.parse(made.model_dump_json()) == made
    module = create_model(made)
    assert (
        torch.equal(module(torch.zeros(2, 1, 16, 16)), module(torch.zeros(2, 1, 16, 16))) is False
    )
    again = load_model(made, flatten(module))
    assert state_layout(again) == state_layout(module)
    assert "left.0.weight" in dict(module.named_parameters())
    assert again(torch.zeros(3, 1, 24, 24)).shape == (3, 2)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"program": None}, "the architecture 'program' has one"),
        ({"architecture": "lenet"}, "no other has"),
        ({"classes": ("a", "b", "c")}, "it gives 2 scores for 3 classes"),
        ({"channels": 3}, "it takes 1 channels"),
        ({"norm": "group"}, "its own norms"),
    ],
)
def test_a_spec_that_does_not_fit_its_program_is_refused(change, named):
    with pytest.raises(InvalidInput) as caught:
        ModelSpec.parse({**spec().model_dump(), **change})
    assert named in str(caught.value)


def test_batch_norm_stands_against_private_training():
    check_norm(spec())
    with pytest.raises(InvalidInput, match="BatchNorm"):
        check_norm(spec(batch_norm=True))


def test_memory_is_counted_without_running_it(monkeypatch):
    monkeypatch.setattr(Network, "__init__", None)
    small, large = (training_bytes(spec(), TrainingConfig(batch_size=n)) for n in (8, 800))
    assert large > small > 0


def test_a_program_of_supported_gates_is_compiled_for_encrypted_inference():
    layers = [
        {"kind": "conv2d", "path": "conv", "given": 1, "made": 4, "kernel": [3, 3], "bias": False},
        {"kind": "batch_norm", "path": "norm", "channels": 4},
        {"kind": "linear", "path": "head", "given": 4, "made": 2},
    ]
    steps = [
        {"op": "layer", "layer": "conv", "of": 0},
        {"op": "layer", "layer": "norm", "of": 1},
        {"op": "relu", "of": 2},
        {"op": "max_pool2d", "of": 3, "kernel": [2, 2], "stride": [2, 2]},
        {"op": "adaptive_avg_pool2d", "of": 4, "size": [1, 1]},
        {"op": "flatten", "of": 5},
        {"op": "layer", "layer": "head", "of": 6},
    ]
    made = program(layers, steps, size=(16, 16))
    values = {"architecture": "program", "program": made, "classes": ("a", "b"), "image_size": 16}
    module = create_model(ModelSpec.model_validate(values)).eval()
    compiled = compile_model(module, (1, 16, 16))
    assert len(compiled.plan.gates()) > 1


def test_what_the_protocol_has_no_gate_for_is_refused_by_name():
    from primia.errors import UnsupportedModel

    with pytest.raises(UnsupportedModel, match="norm"):
        compile_model(create_model(spec()).eval(), (1, 16, 16))


def test_values_are_alive_until_their_last_use() -> None:
    """Two maps of 8 x 4 x 4 that are added: the first one waits for the second."""
    conv = {"kind": "conv2d", "path": "conv", "given": 1, "made": 8, "kernel": [1, 1]}
    steps = [
        {"op": "layer", "layer": "conv", "of": 0},
        {"op": "relu", "of": 1},
        {"op": "sigmoid", "of": 2},
        {"op": "add", "of": [2, 3]},
        {"op": "mean", "of": 4, "dimensions": [2, 3]},
    ]
    found = program([conv], steps, size=(4, 4))
    assert alive(found) == 3 * 8 * 4 * 4
    assert alive(found, (1, 8, 8)) == 3 * 8 * 8 * 8
