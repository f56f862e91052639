"""DP-SGD: what one image can move, how much noise there is, which images are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from primia.errors import InvalidInput
from primia.learning.accounting import DpSgd, Release, release_of_round
from primia.learning.carried import Carried
from primia.learning.config import TrainingConfig
from primia.learning.models import create_model, flatten
from primia.learning.private import (
    LatticeOptimizer,
    NotPrivate,
    PoissonSampler,
    _Session,
    train_privately,
)
from primia.learning.spec import ModelSpec
from primia.learning.training import ImageData, TrainingStopped, predict

SPEC = ModelSpec(architecture="small_cnn", classes=("dark", "light"), image_size=16, norm="group")


def images(count: int = 60) -> ImageData:
    generator = np.random.default_rng(0)  # seeded test data
    labels = np.arange(count) % 2
    pixels = generator.integers(0, 100, (count, 1, 16, 16)) + 120 * labels[:, None, None, None]
    return ImageData.of(pixels.astype(np.uint8), labels, SPEC)


def parameters(*values: list[float]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor(each)) for each in values]


def test_each_image_is_clipped_and_the_sum_is_divided_by_the_expected_batch() -> None:
    params = parameters([0.0, 0.0], [0.0])
    optimiser = LatticeOptimizer(torch.optim.SGD(params, lr=1.0), sigma=0, clip=1.0, batch_size=4)
    optimiser.accumulate([torch.tensor([[3.0, 0.0], [0.1, 0.2]]), torch.tensor([[4.0], [0.2]])])
    optimiser.accumulate([torch.tensor([[0.0, 0.0]]), torch.tensor([[-0.5]])])
    optimiser.finish()
    moved = torch.cat([p.detach() for p in params])
    expected = -torch.tensor([0.6 + 0.1, 0.2, 0.8 + 0.2 - 0.5]) / 4
    assert torch.allclose(moved, expected, atol=1e-5)
    optimiser.finish()  # an empty batch: nothing but noise, of which there is none
    assert torch.equal(torch.cat([p.detach() for p in params]), moved)


def test_the_noise_has_the_deviation_that_is_accounted_for() -> None:
    (param,) = params = parameters([0.0] * 50_000)
    optimiser = LatticeOptimizer(torch.optim.SGD(params, lr=1.0), sigma=1.5, clip=2.0, batch_size=8)
    optimiser.finish()
    drawn = param.detach().numpy() * 8 / (1.5 * 2.0)
    assert drawn.std() == pytest.approx(1, abs=0.02)
    assert abs(drawn.mean()) < 0.03
    before = param.detach().clone()
    optimiser.finish()
    assert not torch.equal(param.detach() - before, before)


def test_every_image_is_drawn_by_itself_at_the_stated_rate() -> None:
    sampler = PoissonSampler(200, 20)
    sizes = [len(sampler.draw()) for _ in range(300)]
    assert np.mean(sizes) == pytest.approx(20, abs=1)
    assert np.var(sizes) == pytest.approx(200 * 0.1 * 0.9, rel=0.35)  # binomial, not constant
    assert len(PoissonSampler(7, 7).draw()) == 7


def test_gradients_of_images_are_those_of_each_image_alone() -> None:
    """One by one (on a CPU) and all at once (on a GPU) give the same, and plain autograd too."""
    data, config = images(6), TrainingConfig(batch_size=4, augment=False)
    rows = np.arange(6)
    sums = []
    for together in (False, True):
        module = create_model(SPEC)
        session = _Session(
            module, data, config, DpSgd(noise_multiplier=1, clip_norm=1e-2), Release(1, 0.5, 1), 0,
            Carried(),
        )  # fmt: skip
        batch = data.batch(rows, torch.device("cpu"))
        loss, right = session._all_at_once(*batch) if together else session._backward(rows)
        sums.append(torch.cat(session._optimiser._sums))
    assert torch.allclose(sums[0], sums[1], atol=1e-8)
    expected = torch.zeros_like(sums[0])
    for image, label in zip(*batch, strict=True):
        module = create_model(SPEC)
        functional.cross_entropy(module(image[None]), label[None]).backward()
        gradient = torch.cat([p.grad.reshape(-1) for p in module.parameters()]).double()
        expected += gradient * min(1.0, 1e-2 / float(gradient.norm()))
    assert torch.allclose(sums[0], expected, atol=1e-7)
    assert 0 <= right <= 6
    assert loss > 0


def test_it_learns_where_the_noise_is_small_and_draws_anew_each_time() -> None:
    data, dp = images(), DpSgd(noise_multiplier=0.05)
    config = TrainingConfig(epochs=6, batch_size=10, learning_rate=3e-3, augment=False)
    release = release_of_round(len(data), config, dp, 1)
    ends = []
    for _ in range(2):
        module = create_model(SPEC)
        result = train_privately(module, data, config, dp, release, seed=1)
        ends.append(flatten(module))
        assert result.batches == 36
        assert (predict(module, data).argmax(1) == data.labels).mean() > 0.9
    assert not np.array_equal(*ends)


def test_what_mixes_images_is_refused() -> None:
    spec = SPEC.model_copy(update={"norm": "batch"})
    config, dp = TrainingConfig(batch_size=10), DpSgd(noise_multiplier=1)
    data, release = images(), Release(1, 0.5, 1)
    with pytest.raises(NotPrivate, match="BatchNorm") as caught:
        train_privately(create_model(spec), data, config, dp, release, seed=1)
    assert "norm 'group'" in caught.value.hint
    mixed = TrainingConfig(batch_size=10, mixup=0.2)
    with pytest.raises(InvalidInput, match="without mixup"):
        train_privately(create_model(SPEC), data, mixed, dp, release, seed=1)
    with pytest.raises(TrainingStopped):
        train_privately(
            create_model(SPEC), data, config, dp, Release(1, 1.0, 9), 1, should_stop=lambda: True
        )
