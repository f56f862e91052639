"""Gradients of small networks, and images found from them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from primia.errors import InvalidInput
from primia.evaluation.attacks.gradients import (
    Gradient,
    clipped_gradient,
    length,
    mean_gradient,
    weighted_gradient,
)
from primia.evaluation.attacks.inversion import (
    NothingSeen,
    Search,
    Shown,
    cosine_distance,
    invert,
    total_variation,
)

SIDE = 12
LABELS = torch.tensor([2, 0, 1])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing by more, and threads wait for one another on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(*, norm: bool = False) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(1, 8, 5, 2, 2), nn.SiLU(), nn.Flatten()]
    if norm:
        layers.insert(1, nn.BatchNorm2d(8))
    module = nn.Sequential(*layers, nn.Linear(8 * 36, 3))
    with torch.no_grad():
        for part in module:
            if isinstance(part, nn.Conv2d | nn.Linear):
                part.weight.normal_(0, 0.2, generator=generator)
                part.bias.zero_()
    return module


def pictures(count: int, seed: int = 1) -> Tensor:
    """Smooth, between -1 and 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 3, 3, generator=generator) * 2 - 1
    return functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(-1, 1)


def shown(labels: Tensor, **more: Any) -> Shown:
    return Shown(labels, (1, SIDE, SIDE), -1.0, 1.0, **more)


def error(one: Tensor, other: Tensor) -> float:
    return float((one - other).square().mean())


def test_a_gradient_is_autograds_own_and_leaves_the_module_alone() -> None:
    module, images = network(norm=True), pictures(3)
    before = copy.deepcopy(module.state_dict())
    sent = mean_gradient(module.eval())(images, LABELS)
    assert not module.training
    assert all(torch.equal(before[name], each) for name, each in module.state_dict().items())
    loss = functional.cross_entropy(module.train()(images), LABELS)
    expected = torch.autograd.grad(loss, list(module.parameters()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(sent, expected, strict=True))


def test_a_sum_weighs_sites_by_their_images_and_norms_each_by_itself() -> None:
    module, images = network(norm=True), pictures(3)
    of_site = mean_gradient(module)
    parts = of_site(images[:1], LABELS[:1]), of_site(images[1:], LABELS[1:])
    found = weighted_gradient(module, [1, 2])(images, LABELS)
    for each, first, second in zip(found, *parts, strict=True):
        assert torch.allclose(each, first / 3 + second * 2 / 3, atol=1e-6)
    together = of_site(images, LABELS)
    assert (
        float(cosine_distance(found, _unit(together)).detach()) > 1e-3
    )  # one batch is another thing


def test_each_image_is_clipped_by_itself() -> None:
    module, images = network(), pictures(3)
    of_site = mean_gradient(module)
    each = [of_site(images[k : k + 1], LABELS[k : k + 1]) for k in range(3)]
    norm = sorted(_length(one) for one in each)[1]  # one is below it, one above
    found = clipped_gradient(module, norm)(images, LABELS)
    factors = [min(1.0, norm / _length(one)) / 3 for one in each]
    for place, value in enumerate(found):
        expected = sum(f * one[place] for f, one in zip(factors, each, strict=True))
        assert torch.allclose(value, expected, atol=1e-6)
    assert _length(clipped_gradient(module, 1e-3)(images, LABELS)) <= 1e-3 + 1e-8


def test_an_image_is_found_from_its_gradient_and_unrelated_ones_are_far() -> None:
    module, images, search = network(), pictures(1), Search(80)
    seen = mean_gradient(module)(images, LABELS[:1])
    found = invert(seen, mean_gradient(module), shown(LABELS[:1]), search)
    unrelated = min(error(images, pictures(1, seed)) for seed in range(2, 12))
    assert error(images, found.images) < unrelated / 20
    assert found.distance < 0.01


def test_the_scale_of_what_is_seen_does_not_matter_and_the_seed_decides() -> None:
    module, images = network(), pictures(1)
    seen = mean_gradient(module)(images, LABELS[:1])
    scaled = tuple(each * 2**-10 for each in seen)

    def found(what: Gradient, seed: int) -> Tensor:
        search = Search(20, seed=seed)
        return invert(what, mean_gradient(module), shown(LABELS[:1]), search).images

    first = found(seen, 0)
    assert torch.equal(first, found(seen, 0))
    assert torch.equal(first, found(scaled, 0))
    assert not torch.equal(first, found(seen, 1))


def test_of_several_starts_the_best_is_kept_and_values_stay_pixels() -> None:
    module, images = network(), pictures(1)
    seen = mean_gradient(module)(images, LABELS[:1])
    known = shown(LABELS[:1])
    one = invert(seen, mean_gradient(module), known, Search(5, spread=2.0))
    many = invert(seen, mean_gradient(module), known, Search(5, restarts=4, spread=2.0))
    assert many.objective <= one.objective
    assert many.images.abs().max() <= 1
    near = shown(LABELS[:1], start=images[0])
    helped = invert(seen, mean_gradient(module), near, Search(5, spread=1e-3, rate=1e-3))
    assert error(helped.images, images) < error(many.images, images) / 10


def test_more_images_in_a_sum_and_noise_are_each_worse_for_the_attacker() -> None:
    module, images, search = network(), pictures(3), Search(80)
    alone = mean_gradient(module)(images[:1], LABELS[:1])
    first = invert(alone, mean_gradient(module), shown(LABELS[:1]), search).images[0]
    sender = weighted_gradient(module, [1, 1, 1])
    summed = invert(sender(images, LABELS), sender, shown(LABELS), search).images
    generator = torch.Generator().manual_seed(0)
    spread = _length(alone) / sum(each.numel() for each in alone) ** 0.5
    noisy = tuple(each + torch.randn(each.shape, generator=generator) * spread for each in alone)
    hidden = invert(noisy, mean_gradient(module), shown(LABELS[:1]), search).images[0]
    best = error(first, images[0])
    assert min(error(each, images[0]) for each in summed) > 3 * best
    assert error(hidden, images[0]) > 3 * best


def test_total_variation_is_of_neighbours() -> None:
    step = torch.zeros(1, 1, 2, 2)
    step[..., 1] = 3.0  # both rows rise by 3 across, nothing goes down
    assert float(total_variation(step)) == 3.0
    assert float(total_variation(torch.ones(2, 1, 4, 4))) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": 0},
        {"iterations": 10**6},
        {"restarts": 0},
        {"restarts": 65},
        {"rate": 0.0},
        {"rate": float("nan")},
        {"spread": -1.0},
        {"total_variation": -0.1},
        {"seed": -1},
    ],
)
def test_a_search_without_bounds_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Search(**wrong)


def test_bad_input_is_refused() -> None:
    module = network()
    sender, zero = mean_gradient(module), tuple(torch.zeros_like(p) for p in module.parameters())
    for seen in (zero, (), tuple(each + torch.nan for each in zero)):
        with pytest.raises(NothingSeen, match="zero or not finite"):
            invert(seen, sender, shown(LABELS), Search(1))
    with pytest.raises(InvalidInput, match="shapes"):
        invert((torch.ones(3),), sender, shown(LABELS), Search(1))
    with pytest.raises(InvalidInput, match="labels"):
        shown(LABELS[:0])
    with pytest.raises(InvalidInput, match="too many"):
        Shown(LABELS, (1, 1 << 14, 1 << 14), 0, 1)
    with pytest.raises(InvalidInput, match="below white"):
        Shown(LABELS, (1, SIDE, SIDE), 1, 1)
    with pytest.raises(InvalidInput, match="start"):
        shown(LABELS, start=torch.zeros(1, 2, 2))
    with pytest.raises(InvalidInput, match="one image each"):
        weighted_gradient(module, [2, 0])
    with pytest.raises(InvalidInput, match="clipped"):
        clipped_gradient(module, 0)


def _length(gradient: Gradient) -> float:
    return float(length(gradient).detach())


def _unit(gradient: Gradient) -> Gradient:
    norm = length(gradient)
    return tuple((each / norm).detach() for each in gradient)
