"""Images of a folder, spread over simulated sites: no patient is at two, nor in the test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from primia.errors import InvalidInput
from primia.learning import datasets, images
from primia.learning.manifest import DatasetManifest, Entry, partition, sample, split
from primia.learning.spec import ModelSpec
from primia.learning.training import ImageData

_TEST_FRACTION = 0.2


@dataclass(frozen=True)
class Site:
    """``validation``: None where none was set apart."""

    name: str
    training: ImageData
    validation: ImageData | None


@dataclass(frozen=True)
class Setting:
    spec: ModelSpec
    sites: tuple[Site, ...]
    test: ImageData

    def pooled(self) -> Site:
        """All sites' images in one place."""
        held = [site.validation for site in self.sites if site.validation is not None]
        return Site(
            "pooled",
            _joined([site.training for site in self.sites]),
            _joined(held) if held else None,
        )


@dataclass(frozen=True)
class Wanted:
    """``images``: about so many for training in all; 0: all there are. ``test``: share of the
    patients that is held out where there is no folder ``test``; 0: a fifth."""

    sites: int = 3
    images: int = 0
    validation: float = 0.1
    test: float = 0.0
    seed: int = 0


def load(root: Path, spec: ModelSpec, wanted: Wanted) -> Setting:
    """From a folder of class folders, or one with such folders ``train`` and ``test``; without
    ``test`` some of the patients are held out. The classes are the spec's."""
    train_root, test_root = (root / "train", root / "test")
    if train_root.is_dir() and test_root.is_dir():
        if wanted.test:
            raise InvalidInput(
                f"{test_root} has the test images.", hint="Leave training.test_fraction out."
            )
        whole, test = listed(train_root), listed(test_root)
    else:
        train_root = test_root = root
        whole, test = split(listed(root), wanted.test or _TEST_FRACTION, wanted.seed)
    if wanted.images:
        whole = sample(whole, wanted.images, wanted.seed)
    sites = []
    for number, part in enumerate(partition(whole, wanted.sites, wanted.seed)):
        training, validation = split(part, wanted.validation, wanted.seed)
        sites.append(
            Site(
                f"site-{chr(ord('a') + number)}",
                _read(training, train_root, spec),
                _read(validation, train_root, spec) if len(validation) else None,
            )
        )
    return Setting(spec, tuple(sites), _read(test, test_root, spec))


def listed(root: Path) -> DatasetManifest:
    """Every file that has an image's name; not read yet."""
    found = datasets.scan_folder(root)
    if not found.candidates:
        raise InvalidInput(f"No images are in {root}.", hint="Give a folder with a folder a class.")
    empty = "0" * 64
    return DatasetManifest.of(Entry(c.path, c.label, c.patient, empty) for c in found.candidates)


def _read(manifest: DatasetManifest, root: Path, spec: ModelSpec) -> ImageData:
    size, channels = spec.image_size, spec.channels
    pixels = [images.load(root / entry.path, size, channels) for entry in manifest.entries]
    return ImageData.of(np.stack(pixels), manifest.labels(spec.classes), spec)


def _joined(parts: Sequence[ImageData]) -> ImageData:
    return ImageData(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.labels for part in parts]),
        parts[0].mean,
        parts[0].std,
    )
