"""Sums of pixels, classes and sizes: exact over any number of sites."""

from __future__ import annotations

import numpy as np
import pytest

from primia.errors import InvalidInput
from primia.learning.statistics import Contradictory, Statistics, length, measure

SIZE, CLASSES = 8, 3


def site(seed: int, images: int, channels: int):
    generator = np.random.default_rng(seed)  # seeded test data
    pixels = generator.integers(0, 256, (images, channels, SIZE, SIZE), dtype=np.uint8)
    labels = generator.integers(0, CLASSES, images)
    sizes = generator.integers(500, 3000, (images, 2))
    return pixels, labels, sizes


@pytest.mark.parametrize("channels", [1, 3])
def test_the_sum_over_sites_gives_what_all_images_together_have(channels: int) -> None:
    sites = [site(seed, images, channels) for seed, images in enumerate((2, 300, 41))]
    total = np.sum([measure(*each, CLASSES) for each in sites], axis=0, dtype=np.uint64)
    found = Statistics.of(total, CLASSES, channels, SIZE)
    pixels, labels, sizes = (np.concatenate(part) for part in zip(*sites, strict=True))
    scaled = pixels.astype(np.float64) / 255
    assert found.images == 343
    assert found.counts == tuple(np.bincount(labels))
    np.testing.assert_allclose(found.mean, scaled.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(found.deviation, scaled.std(axis=(0, 2, 3)), rtol=1e-12)
    for found_moments, column in ((found.width, 0), (found.height, 1)):
        assert found_moments.mean == pytest.approx(sizes[:, column].mean(), rel=1e-12)
        assert found_moments.deviation == pytest.approx(sizes[:, column].std(), rel=1e-12)


def test_class_weights_make_classes_weigh_the_same() -> None:
    pixels, _, sizes = site(1, 60, 1)
    labels = np.repeat([0, 1, 2], [10, 20, 30])
    found = Statistics.of(measure(pixels, labels, sizes, CLASSES), CLASSES, 1, SIZE)
    weights = found.class_weights()
    assert np.multiply(weights, found.counts) == pytest.approx([20, 20, 20])
    assert np.dot(weights, found.counts) == pytest.approx(found.images)
    empty = found.model_copy(update={"counts": (10, 0, 50)})
    with pytest.raises(InvalidInput, match="no training image"):
        empty.class_weights()


@pytest.mark.parametrize("grey", [0, 3, 128, 255])
def test_no_normalised_pixel_lies_past_four_units(grey: int) -> None:
    pixels, labels, sizes = site(2, 5, 1)
    pixels[:] = grey
    mean, std = Statistics.of(
        measure(pixels, labels, sizes, CLASSES), CLASSES, 1, SIZE
    ).normalisation()
    assert mean == (grey / 255,)
    assert max(mean[0], 1 - mean[0]) / std[0] <= 4 + 1e-9


def test_sums_that_no_images_have_are_refused() -> None:
    good = measure(*site(3, 9, 1), CLASSES)
    with pytest.raises(Contradictory, match="no images"):
        Statistics.of(np.zeros_like(good), CLASSES, 1, SIZE)
    false = good.copy()
    false[CLASSES + 1] = 0
    with pytest.raises(Contradictory, match="variance"):
        Statistics.of(false, CLASSES, 1, SIZE)
    false = good.copy()
    false[CLASSES] = np.uint64(1 << 60)
    with pytest.raises(Contradictory):
        Statistics.of(false, CLASSES, 1, SIZE)
    false = good.copy()
    false[CLASSES + 1] = np.uint64(1 << 60)
    with pytest.raises(Contradictory, match="out of range"):
        Statistics.of(false, CLASSES, 1, SIZE)
    with pytest.raises(InvalidInput):
        Statistics.of(good[1:], CLASSES, 1, SIZE)
    assert len(good) == length(CLASSES, 1)
