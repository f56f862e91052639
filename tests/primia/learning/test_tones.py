"""Variations of grey values against PIL, SciPy and plain loops, and within their bounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter
from scipy.stats import kstest

from primia.learning import training
from primia.learning.augmentation import augment, augment_both
from primia.learning.config import NO_AUGMENTATION, Augmentation, TrainingConfig
from primia.learning.equalisation import CLIP, LEVELS, TILES, clahe
from primia.learning.models import create_model
from primia.learning.spec import ModelSpec
from primia.learning.training import ImageData, train_locally

SIDE = 32
MEAN, STD = 0.4, 0.3
TONES = {
    "gamma": 0.4,
    "blur": 1.0,
    "noise": 0.1,
    "clahe": 1.0,
    "equalise": 1.0,
    "solarise": 1.0,
    "contrast": 0.3,
    "brightness": 0.3,
    "cutout": 1.0,
}
CHANCES = ("mirror", "flip", "blur", "clahe", "equalise", "solarise", "cutout")


def _only(**strengths: float) -> Augmentation:
    return NO_AUGMENTATION.model_copy(update=strengths)


def _generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _bytes(count: int, channels: int = 1, low: int = 0, high: int = 256) -> NDArray[np.uint8]:
    draws = np.random.default_rng(4)
    return draws.integers(low, high, (count, channels, SIDE, SIDE)).astype(np.uint8)


def _grey(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255)


def _varied(grey: torch.Tensor, config: Augmentation, seed: int = 1) -> torch.Tensor:
    """Grey values in 0 to 1, before and after."""
    varied = augment((grey - MEAN) / STD, _generator(seed), config, MEAN, STD)
    return varied * STD + MEAN


def _levels(grey: torch.Tensor) -> NDArray[np.float64]:
    return np.asarray(grey.numpy().astype(np.float64) * 255)


@pytest.mark.parametrize("name", [n for n in TONES if n not in ("contrast", "brightness")])
def test_tones_stay_in_the_range_of_grey(name: str) -> None:
    varied = _varied(_grey(_bytes(40)), _only(**{name: TONES[name]}))
    assert varied.min() >= -1e-5
    assert varied.max() <= 1 + 1e-5


@pytest.mark.parametrize("name", TONES)
def test_tones_leave_masks_alone(name: str) -> None:
    images = (_grey(_bytes(8)) - MEAN) / STD
    masks = torch.from_numpy(np.random.default_rng(2).choice([0, 3, 7], (8, SIDE, SIDE)))
    config = _only(**{name: TONES[name]})
    varied, same = augment_both(images, masks, _generator(), config, MEAN, STD)
    assert torch.equal(same, masks)
    assert torch.equal(varied, augment(images, _generator(), config, MEAN, STD))
    assert not torch.equal(varied, images)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("solarise", lambda image: ImageOps.solarize(image, threshold=128)),
        ("equalise", ImageOps.equalize),
    ],
)
@pytest.mark.parametrize(("low", "high"), [(0, 256), (90, 160), (7, 8)])
def test_pillow_makes_the_same(
    name: str, known: Callable[[Image.Image], Image.Image], low: int, high: int
) -> None:
    pixels = _bytes(3, 3, low, high)
    found = _levels(_varied(_grey(pixels), _only(**{name: 1.0})))
    for image, varied in zip(pixels.reshape(-1, SIDE, SIDE), found.reshape(-1, SIDE, SIDE),
                             strict=True):  # fmt: skip
        assert np.allclose(varied, np.asarray(known(Image.fromarray(image))), atol=1e-2)


def _clahe(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """One grey image, pixel by pixel; what of a tile lies beyond the edges repeats the edge."""
    size = len(image)
    side = -(-size // TILES)
    spare = side * TILES - size
    whole = np.pad(image, (0, spare), mode="edge")
    curves = np.zeros((TILES, TILES, LEVELS))
    for row, column in np.ndindex(TILES, TILES):
        tile = whole[row * side : (row + 1) * side, column * side : (column + 1) * side]
        counts = np.bincount(tile.ravel(), minlength=LEVELS).astype(float)
        limit = max(1.0, CLIP * tile.size / LEVELS)
        over = np.maximum(counts - limit, 0).sum()
        curves[row, column] = np.cumsum(np.minimum(counts, limit) + over / LEVELS) / tile.size
    centres = np.arange(TILES) * side + (side - 1) / 2
    out = np.zeros(image.shape)
    for row, column in np.ndindex(*image.shape):
        known = curves[:, :, image[row, column]]
        by_row = [np.interp(column, centres, line) for line in known]
        out[row, column] = np.interp(row, centres, by_row)
    return out


@pytest.mark.parametrize("size", [32, 30, 17])
def test_adaptive_equalisation_pixel_by_pixel(size: int) -> None:
    """Bilinear between the centres of the tiles, also for sides that tiles do not divide."""
    y, x = np.mgrid[:size, :size]
    noise = np.random.default_rng(1).integers(0, 60, (size, size))
    image = (60 + 2 * x + 60 * (y > size // 2) + noise).astype(np.uint8)
    found = clahe(_grey(image[None, None]))[0, 0]
    assert np.allclose(found, _clahe(image), atol=1e-5)
    colours = clahe(_grey(np.stack([image, 255 - image, image // 2])[None]))[0]
    assert torch.equal(colours[0], found)
    assert np.allclose(colours[2], _clahe(image // 2), atol=1e-5)


def test_gamma_is_one_power_an_image() -> None:
    grey = _grey(_bytes(200, low=20, high=230))
    found = torch.log(_varied(grey, _only(gamma=0.4))) / torch.log(grey)
    powers = found.flatten(1).mean(dim=1)
    assert torch.allclose(found, powers[:, None, None, None].expand_as(found), rtol=2e-3)
    assert 0.6 <= powers.min() < 0.7
    assert 1.3 < powers.max() <= 1.4 + 1e-3


def test_a_blur_is_scipys_gaussian() -> None:
    """What becomes of a single bright pixel says with which deviation."""
    count = 60
    dot = torch.zeros(count, 1, SIDE, SIDE)
    dot[:, :, 16, 16] = 1
    spread = _varied(dot, _only(blur=1.0)).double()
    ratio = (spread[:, 0, 16, 17] / spread[:, 0, 16, 16]).clamp(min=1e-9)
    sigmas = (-1 / (2 * ratio.log())).sqrt().tolist()
    assert 0.3 - 0.02 <= min(sigmas) < 0.5
    assert 1.3 < max(sigmas) <= 1.5 + 0.02
    pictures = _grey(_bytes(count))
    for picture, sigma, found in zip(pictures, sigmas, _varied(pictures, _only(blur=1.0)),
                                     strict=True):  # fmt: skip
        expected = gaussian_filter(picture[0].numpy(), sigma, radius=3, mode="mirror")
        assert np.allclose(found[0], expected, atol=2e-3)


def test_noise_is_normal_and_of_no_more_than_its_deviation() -> None:
    grey = torch.full((200, 1, SIDE, SIDE), 0.5)
    noise = (_varied(grey, _only(noise=0.1)) - grey).flatten(1).double()
    deviations = noise.std(dim=1)
    slack = 1 + 4 / np.sqrt(2 * SIDE**2)  # four deviations of a sample's deviation
    assert deviations.max() <= 0.1 * slack
    assert kstest(deviations / 0.1, "uniform").pvalue > 1e-3
    assert (noise.mean(dim=1).abs() <= 5 * deviations / SIDE).all()
    strongest = noise[deviations.argmax()]
    assert kstest((strongest / strongest.std()).numpy(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise[:2])[0, 1]) < 0.2


def test_contrast_and_brightness_are_one_line_an_image() -> None:
    images = (_grey(_bytes(200, 3)) - MEAN) / STD
    varied = augment(images, _generator(), _only(contrast=0.3, brightness=0.2), MEAN, STD)
    lines = [np.polyfit(a.flatten().numpy(), b.flatten().numpy(), 1, full=True)
             for a, b in zip(images, varied, strict=True)]  # fmt: skip
    assert max(float(line[1][0]) for line in lines) < 1e-4
    slopes, shifts = np.array([line[0] for line in lines]).T
    for values, reach in ((slopes - 1, 0.3), (shifts, 0.2)):
        assert -reach - 1e-4 <= values.min() < -0.9 * reach
        assert 0.9 * reach < values.max() <= reach + 1e-4
    assert abs(np.corrcoef(slopes, shifts)[0, 1]) < 0.25


def test_a_cut_out_is_a_square_of_mean_grey_of_up_to_a_quarter_of_the_side() -> None:
    images = (_grey(_bytes(300, 3, 130, 250)) - MEAN) / STD  # nowhere the mean
    varied = augment(images, _generator(), _only(cutout=1.0), MEAN, STD)
    cut = varied != images
    assert (varied[cut] == 0).all()
    assert torch.equal(cut.any(dim=1), cut.all(dim=1))  # all channels at once
    sides, corners = [], []
    for each in cut[:, 0]:
        rows, columns = (np.flatnonzero(each.any(dim=axis)) for axis in (1, 0))
        assert each.sum() == len(rows) * len(columns)
        assert (np.ptp(rows), np.ptp(columns)) == (len(rows) - 1, len(columns) - 1)
        assert len(rows) == len(columns)
        sides.append(len(rows))
        corners += [rows[0], columns[0]]
    assert (min(sides), max(sides)) == (1, SIDE // 4)
    assert (min(corners), max(corners)) == (0, SIDE - 1)


@pytest.mark.parametrize("name", CHANCES)
def test_chances_are_as_often_as_they_say(name: str) -> None:
    grey = _grey(_bytes(1, low=60, high=250)).expand(400, 1, SIDE, SIDE)
    changed = (_varied(grey, _only(**{name: 0.3})) - grey).abs().flatten(1).amax(dim=1) > 1e-3
    assert abs(int(changed.sum()) - 120) < 4 * np.sqrt(400 * 0.3 * 0.7)


@pytest.mark.parametrize("segmentation", [False, True])
def test_every_epoch_sees_other_variations_and_a_seed_the_same_ones(
    segmentation: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = {"architecture": "unet", "width": 8} if segmentation else {"architecture": "lenet"}
    spec = ModelSpec.parse({**kind, "classes": ("a", "b"), "image_size": SIDE})
    pixels = np.repeat(_bytes(1), 4, axis=0)
    labels = np.arange(4) % 2
    masks = np.repeat(_bytes(1)[:, 0] % 2, 4, axis=0)
    data = ImageData.of(pixels, masks if segmentation else labels, spec)
    name = "augment_both" if segmentation else "augment"
    varying = getattr(training, name)
    seen: list[bytes] = []

    def spy(*args: object) -> object:
        found = varying(*args)
        images = found[0] if segmentation else found
        seen.extend(each.numpy().tobytes() for each in images)
        return found

    monkeypatch.setattr(training, name, spy)
    config = TrainingConfig(epochs=2, batch_size=4, augmentation=_only(rotation=10, noise=0.1))
    runs = []
    for seed in (1, 1, 2):
        train_locally(create_model(spec), data, config, seed)
        runs.append(tuple(seen))
        seen.clear()
    assert len(set(runs[0])) == 2 * 4
    assert runs[0] == runs[1]
    assert not set(runs[0]) & set(runs[2])
