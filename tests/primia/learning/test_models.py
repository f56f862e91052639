import numpy as np
import pytest
import torch
from torch import fx

from primia.learning.layout import InvalidState, read_state, write_state
from primia.learning.models import (
    create_model,
    flatten,
    load_into,
    load_model,
    spec_layout,
    state_layout,
    unflatten,
)
from primia.learning.spec import ModelSpec, architectures
from primia.learning.zoo import HEADS, build

SMALL = ModelSpec(architecture="small_cnn", classes=("a", "b", "c"), image_size=16, seed=5)


def _spec(name: str, channels: int) -> ModelSpec:
    given = {"architecture": name, "classes": ["a", "b"], "channels": channels, "image_size": 32}
    return ModelSpec.parse(given)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [entry.name for entry in architectures()])
def test_every_model_runs_and_traces(name: str, channels: int) -> None:
    module = create_model(_spec(name, channels)).eval()
    images = torch.ones(1, channels, 32, 32)
    logits = module(images)
    assert logits.shape == ((1, 2, 32, 32) if name == "unet" else (1, 2))
    assert torch.isfinite(logits).all()
    assert torch.equal(fx.symbolic_trace(module)(images), logits)


@pytest.mark.parametrize("name", ["resnet50", "vgg16_bn", "densenet121", "mobilenet", "unet"])
def test_norms_by_groups_take_the_place_of_all_others(name: str) -> None:
    spec = _spec(name, 1).model_copy(update={"norm": "group"})
    with torch.device("meta"):
        parts = list(build(spec).modules())
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in parts)
    norms = [part for part in parts if isinstance(part, torch.nn.GroupNorm)]
    assert norms
    assert all(part.num_channels % part.num_groups == 0 < part.num_groups for part in norms)
    assert spec_layout(spec).group_size("buffers") == 0


def test_a_model_with_norms_by_groups_learns_and_keeps_no_statistics() -> None:
    module = create_model(SMALL.model_copy(update={"norm": "group"}))
    images = torch.linspace(-1, 1, 2 * 256).reshape(2, 1, 16, 16)
    alone = module.eval()(images[:1])
    assert torch.allclose(module(images)[:1], alone, atol=1e-6)


# torchvision's counts with 1000 classes and three channels; of the last layer, inputs + 1 a class.
KNOWN = {
    "resnet34": (21_797_672, 513),
    "resnet50": (25_557_032, 2049),
    "vgg16": (138_357_544, 4097),
    "vgg16_bn": (138_365_992, 4097),
    "densenet121": (7_978_856, 1025),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_known_numbers_of_parameters(name: str) -> None:
    total, a_class = KNOWN[name]
    layout = spec_layout(_spec(name, 3))
    assert layout.group_size("parameters") == total - 998 * a_class
    slot = next(slot for slot in layout.slots if slot.name == f"{HEADS[name]}.weight")
    assert slot.shape == (2, a_class - 1)


@pytest.mark.parametrize("size", [16, 20, 28, 32, 33, 50, 256])
def test_lenet_takes_any_size(size: int) -> None:
    spec = ModelSpec.parse(
        {"architecture": "lenet", "classes": ["a", "b"], "image_size": size, "channels": 3}
    )
    assert create_model(spec)(torch.zeros(1, 3, size, size)).shape == (1, 2)


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


@pytest.mark.parametrize("name", ["small_cnn", "resnet18"])
def test_a_vector_that_is_the_state_is_trained_in_place_as_a_copy_is(name: str) -> None:
    spec = ModelSpec.parse({"architecture": name, "classes": ("a", "b"), "image_size": 32})
    first = flatten(create_model(spec))
    slot = next(
        each for each in state_layout(create_model(spec)).slots if "running_var" in each.name
    )
    first[slot.offset] = -1e-3  # comes back as zero, in both
    images, labels = torch.linspace(-1, 1, 4 * 32 * 32).reshape(4, 1, 32, 32), [0, 1, 0, 1]
    found = []
    for held in (None, first.copy()):
        module = load_model(spec, first) if held is None else load_into(spec, held)
        module.train()
        optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
        for _ in range(2):
            torch.nn.functional.cross_entropy(module(images), torch.tensor(labels)).backward()
            optimiser.step()
            optimiser.zero_grad()
        found.append(flatten(module) if held is None else held)
        assert np.array_equal(flatten(module, held), found[-1])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-5)
    assert np.abs(found[1] - first).max() > 1e-3


def test_what_was_moved_out_of_the_vector_comes_back_into_it() -> None:
    vector = flatten(create_model(SMALL))
    module = load_into(SMALL, vector).double().float()  # as to a device and back
    with torch.no_grad():
        module.get_parameter("0.weight").fill_(7)
    assert vector[0] != 7
    assert flatten(module, vector) is vector
    assert vector[0] == 7
    assert np.array_equal(vector, flatten(module))


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
