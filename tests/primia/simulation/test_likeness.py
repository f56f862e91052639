from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from primia.errors import InvalidInput
from primia.learning.spec import ModelSpec
from primia.learning.training import ImageData
from primia.learning.vision import torchvision_models
from primia.simulation.features import inception, trained
from primia.simulation.likeness import Likeness, frechet_distance, likeness, pairing


class Means(nn.Module):
    """Mean brightness of the upper and of the lower half."""

    num_features = 2

    def forward(self, images: Tensor) -> Tensor:
        halves = images.mean(dim=(1, 3)).split(images.shape[2] // 2, dim=1)
        return torch.stack([half.mean(dim=1) for half in halves], dim=1)


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_each_image_is_paired_with_its_own_whatever_the_order() -> None:
    true = pictures(6)
    order = [3, 5, 0, 1, 4, 2]
    found = (0.9 * true + 0.05)[order]
    assert [order[place] for place in pairing(true, found)] == list(range(6))
    more = torch.cat([pictures(2, seed=9), found])
    assert [order[place - 2] for place in pairing(true, more)] == list(range(6))


def test_equal_images_are_alike_and_errors_have_their_size() -> None:
    true = pictures(3)
    same = likeness(true, true)
    assert same.mse == (0, 0, 0)
    assert all(math.isinf(value) for value in same.psnr)
    assert same.ssim == pytest.approx((1, 1, 1))
    half = torch.full((1, 1, 16, 16), 0.5)
    off = likeness(half, half + 0.1)
    assert off.mse == pytest.approx((0.01,))
    assert off.psnr == pytest.approx((20.0,), abs=1e-4)
    assert likeness(true, pictures(3, seed=5)).ssim[0] < 0.3
    assert len(Likeness.joined([same, off]).ssim) == 4


def test_the_frechet_distance_is_that_of_the_fitted_normals() -> None:
    true, found = pictures(40), 0.5 * pictures(40, seed=1)
    assert frechet_distance(true, true.flip(0), Means()) == pytest.approx(0, abs=1e-6)
    a, b = (Means()(images).double().numpy() for images in (true, found))
    first, second = np.cov(a.T), np.cov(b.T)
    mixed = np.sqrt(np.linalg.eigvals(first @ second).astype(complex)).real.sum()
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first + second) - 2 * mixed
    assert frechet_distance(true, found, Means()) == pytest.approx(expected, rel=1e-4)


def test_features_of_a_trained_network_say_whose_they_are() -> None:
    spec = ModelSpec(architecture="small_cnn", classes=("dark", "light"), image_size=16)
    labels = np.arange(40) % 2
    pixels = (pictures(40).numpy() * 100 + 120 * labels[:, None, None, None]).astype(np.uint8)
    data = ImageData.of(pixels, labels, spec)
    found = trained(data, spec, epochs=1)
    assert "40 other images" in found.name
    assert "not Inception" in found.name
    images = torch.from_numpy(pixels).float() / 255
    dark, light = images[::2], images[1::2]
    near = frechet_distance(dark[:10], dark[10:], found.module)
    assert frechet_distance(dark, light, found.module) > 5 * near
    again = trained(data, spec, epochs=1).module(images)
    assert torch.equal(found.module(images), again)


def test_weights_of_inception_give_its_features_and_its_name(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    with torch.device("meta"):
        network = torchvision_models().inception_v3(weights=None, init_weights=False)
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()
        elif isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.uniform_(part.weight, -0.05, 0.05, generator=generator)
    nn.init.zeros_(network.fc.bias)
    nn.init.zeros_(network.AuxLogits.fc.bias)
    save_file(network.state_dict(), file)
    found = inception(file)
    assert "torchvision's Inception-v3" in found.name
    with torch.no_grad():
        rows = found.module(pictures(2))
    assert rows.shape == (2, found.module.num_features) == (2, 2048)
    assert not torch.equal(rows[0], rows[1])


def test_a_file_that_is_no_inception_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"fc.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(InvalidInput, match="Inception"):
        inception(file)
    with pytest.raises(InvalidInput, match="no file"):
        inception(tmp_path / "missing.pth")


def test_bad_input_is_refused() -> None:
    true = pictures(2)
    with pytest.raises(InvalidInput, match="from 0 to 1"):
        likeness(true, true + 1)
    with pytest.raises(InvalidInput, match="from 0 to 1"):
        likeness(true, true * torch.nan)
    with pytest.raises(InvalidInput, match="paired"):
        pairing(true, true[:1])
    with pytest.raises(InvalidInput, match="paired"):
        likeness(true, true[:1])
    with pytest.raises(InvalidInput, match="compared"):
        likeness(true, pictures(2)[..., :8])
    with pytest.raises(InvalidInput, match="two images"):
        frechet_distance(true[:1], true[:1], Means())
