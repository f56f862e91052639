import numpy as np
import pytest
import torch
from torch import fx

from primia.learning.layout import InvalidState, read_state, write_state
from primia.learning.models import (
    create_model,
    flatten,
    load_model,
    spec_layout,
    state_layout,
    unflatten,
)
from primia.learning.spec import ModelSpec, architectures

SMALL = ModelSpec(architecture="small_cnn", classes=("a", "b", "c"), image_size=16, seed=5)


def _spec(name: str, channels: int) -> ModelSpec:
    return ModelSpec.parse({"architecture": name, "classes": ["a", "b"], "channels": channels})


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [entry.name for entry in architectures()])
def test_every_model_runs_and_traces(name: str, channels: int) -> None:
    module = create_model(_spec(name, channels)).eval()
    images = torch.ones(2, channels, 64, 64)
    logits = module(images)
    assert logits.shape == (2, 2)
    assert torch.isfinite(logits).all()
    assert torch.equal(fx.symbolic_trace(module)(images), logits)


def test_resnet18_has_the_known_number_of_parameters() -> None:
    layout = spec_layout(ModelSpec(classes=tuple("abc"), channels=3))
    # He et al.'s ResNet-18 has 11,689,512 with 1000 classes: 513,000 of them in the last layer.
    assert layout.group_size("parameters") == 11_689_512 - 513_000 + 3 * 513
    assert layout.group_size("buffers") == 9600


def test_first_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = flatten(create_model(SMALL))
    torch.manual_seed(2)
    assert np.array_equal(flatten(create_model(SMALL)), first)
    other = flatten(create_model(SMALL.model_copy(update={"seed": 6})))
    assert not np.array_equal(other, first)
    torch.manual_seed(1)
    create_model(SMALL)
    assert torch.equal(torch.get_rng_state(), before)


def test_first_weights_have_the_stated_spread() -> None:
    module = create_model(ModelSpec(classes=("a", "b")))
    weight = module.get_submodule("layer3.0.conv2").get_parameter("weight")
    assert float(weight.detach().std()) == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    bn = module.get_submodule("layer3.0.bn2")
    assert torch.equal(bn.get_parameter("weight"), torch.ones(256))
    assert torch.equal(bn.get_buffer("running_var"), torch.ones(256))
    assert torch.equal(bn.get_buffer("running_mean"), torch.zeros(256))


def test_the_order_is_parameters_then_float_buffers() -> None:
    layout = state_layout(create_model(SMALL))
    groups = [slot.group for slot in layout.slots]
    assert groups == sorted(groups, reverse=True)
    names = {slot.name for slot in layout.slots}
    assert "1.running_var" in names
    assert not any("num_batches_tracked" in name for name in names)
    assert layout == spec_layout(SMALL)


def test_a_state_goes_through_vector_and_file() -> None:
    module = create_model(SMALL)
    with torch.no_grad():
        module(torch.linspace(-1, 1, 4 * 256).reshape(4, 1, 16, 16))  # moves the running statistics
    vector, layout = flatten(module), state_layout(module)
    again = load_model(SMALL, read_state(write_state(vector, layout), layout))
    assert np.array_equal(flatten(again), vector)
    assert not again.training
    images = torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)
    assert torch.equal(again(images), module.eval()(images))


def test_flatten_does_not_depend_on_the_memory_format() -> None:
    module = create_model(SMALL)
    vector = flatten(module)
    laid_out_otherwise = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert np.array_equal(flatten(laid_out_otherwise), vector)
    unflatten(laid_out_otherwise, vector[::-1].copy())
    # the reversed vector holds negative "variances", which come back as zero
    assert np.array_equal(flatten(laid_out_otherwise)[:1000], vector[::-1][:1000])


def test_a_wrong_vector_is_refused_and_changes_nothing() -> None:
    module = create_model(SMALL)
    vector = flatten(module)
    with pytest.raises(InvalidState):
        unflatten(module, vector[:-1])
    bad = vector.copy()
    bad[0] = np.nan
    with pytest.raises(InvalidState, match=r"0\.weight"):
        unflatten(module, bad)
    assert np.array_equal(flatten(module), vector)


def test_a_variance_below_zero_becomes_zero() -> None:
    module = create_model(SMALL)
    vector, layout = flatten(module), state_layout(module)
    slot = next(slot for slot in layout.slots if slot.name == "1.running_var")
    vector[slot.span] = -1e-3
    unflatten(module, vector)
    assert torch.equal(module.get_buffer("1.running_var"), torch.zeros(16))
    assert torch.isfinite(module.eval()(torch.ones(1, 1, 16, 16))).all()


def test_a_module_that_is_not_float32_is_refused() -> None:
    with pytest.raises(InvalidState, match="float64"):
        state_layout(create_model(SMALL).double())
