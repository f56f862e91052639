"""Radiograph-like images that the project draws itself, for trials without patients' images.

A frontal chest: body, lungs, ribs, spine, heart, diaphragm and noise, from a patient's anatomy and
an exposure's accidents. Bacterial pneumonia is drawn as focal consolidation in a lung, viral
pneumonia as a diffuse interstitial pattern in both; both from faint to marked, and healthy lungs
have vessels that look a little like the latter. Only a shape of the task: nothing here is
anatomically exact, and a model trained on these images says nothing about patients.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from primia.errors import InvalidInput
from primia.learning.storage import replacing
from primia.prg import Seed, Stream

Field = NDArray[np.float32]  # one value a pixel, (size, size)
Progress = Callable[[int, int], None]  # (done, of how many)

CLASSES = ("bacterial", "normal", "viral")
MIN_SIZE, MAX_SIZE = 32, 512
MAX_IMAGES = 10_000  # a class
_COMMENT = b"Drawn by a program; shows no patient."
# Patients of different classes never share a number, as in the published set's names.
_NAMES = {
    "bacterial": "person{patient}_bacteria_{image}.jpeg",
    "normal": "IM-{patient:04d}-{image:04d}.jpeg",
    "viral": "person{patient}_virus_{image}.jpeg",
}


class Draws:
    """Numbers from a stream, in the ranges that drawing needs."""

    def __init__(self, seed: Seed, label: str) -> None:
        self._stream = Stream(seed, label)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self._stream.words(1)[0]) / 2**32

    def happens(self, probability: float) -> bool:
        return self.between(0, 1) < probability

    def noise(self, size: int) -> Field:
        """Independent values, uniform with mean 0 and standard deviation 1."""
        return (self._stream.words((size, size)) / 2**32 - 0.5).astype(np.float32) * 12**0.5

    def clouds(self, size: int, cells: int) -> Field:
        """Smooth noise with ``cells`` hills a side, about -1 to 1."""
        grid = (self._stream.words((cells + 2, cells + 2)) / 2**31 - 1).astype(np.float32)
        cloud = Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(cloud, dtype=np.float32)


@dataclass(frozen=True)
class Anatomy:
    """A patient; lengths in half image sides."""

    width: float  # of a lung
    height: float
    apart: float  # lung's centre from the spine
    heart: float  # its radius
    ribs: float  # number in a lung
    slope: float  # of the ribs
    flesh: float  # brightness of the body
    seed_label: str

    @classmethod
    def of(cls, seed: Seed, label: str) -> Anatomy:
        draws = Draws(seed, f"anatomy/{label}")
        return cls(
            width=draws.between(0.26, 0.36),
            height=draws.between(0.55, 0.72),
            apart=draws.between(0.36, 0.43),
            heart=draws.between(0.24, 0.36),
            ribs=draws.between(7, 10),
            slope=draws.between(0.15, 0.5),
            flesh=draws.between(0.5, 0.68),
            seed_label=label,
        )


@dataclass(frozen=True)
class View:
    """One exposure: coordinates from -1 to 1, x to the right, y down, as the patient lay."""

    x: Field
    y: Field

    @classmethod
    def of(cls, draws: Draws, size: int) -> View:
        steps = np.linspace(-1, 1, size, dtype=np.float32)
        y, x = np.meshgrid(steps, steps, indexing="ij")  # (size, size) each
        turn, scale = draws.between(-0.07, 0.07), draws.between(0.88, 1.12)
        right, down = draws.between(-0.08, 0.08), draws.between(-0.1, 0.1)
        x, y = (x - right) / scale, (y - down) / scale
        return cls(x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn))


def _soft(distance: NDArray[np.floating], edge: float) -> Field:
    """1 well inside (distance below 0), 0 well outside, smooth over ``edge``."""
    return np.asarray(0.5 - 0.5 * np.tanh(distance / edge), dtype=np.float32)


def _ellipse(view: View, x: float, y: float, width: float, height: float, edge: float) -> Field:
    radius = np.hypot((view.x - x) / width, (view.y - y) / height)
    return _soft(radius - 1, edge)


def _lung(view: View, anatomy: Anatomy, side: int, full: float) -> Field:
    """A lung: narrow at the top, cut by the diaphragm's dome; ``full``: how far it is filled."""
    centre = side * anatomy.apart
    taper = np.clip(0.55 + 0.45 * (view.y + anatomy.height) / anatomy.height, 0.3, 1.0)
    across = np.abs(view.x - centre) / (anatomy.width * taper)
    along = np.abs(view.y + 0.05) / (anatomy.height * 1.1)
    outline = _soft((across**2.5 + along**3) ** 0.4 - 1, 0.07)
    floor = 0.42 + 0.1 * full + (0.02 if side > 0 else -0.02)
    dome = floor + 2.2 * (view.x - centre) ** 2
    return outline * _soft(view.y - dome, 0.04)


def _body(view: View) -> Field:
    """Trunk with shoulders, and the neck."""
    trunk = (np.abs(view.x) / 0.95) ** 3 + (np.abs(view.y - 0.6) / 1.42) ** 3
    return np.maximum(_soft(trunk ** (1 / 3) - 1, 0.05), _ellipse(view, 0, -0.95, 0.27, 0.5, 0.12))


def _bones(view: View, anatomy: Anatomy) -> Field:
    """Ribs as arcs that fall outwards, and the clavicles."""
    outward = np.abs(view.x)
    phase = view.y - anatomy.slope * outward**1.5 + 0.35 * (outward - 0.4) ** 2
    ribs = np.clip(np.cos(np.pi * anatomy.ribs * phase), 0, 1) ** 2  # bright lines
    cage = _ellipse(view, 0, -0.1, 0.84, 0.72, 0.12) * np.clip(4 * outward - 0.2, 0, 1)
    clavicle = np.exp(-(((view.y + 0.66 + 0.22 * (outward - 0.5)) / 0.035) ** 2))
    reach = _soft(outward - 0.72, 0.06) * np.clip(8 * outward - 0.6, 0, 1)
    return np.asarray(0.13 * ribs * cage + 0.13 * clavicle * reach, dtype=np.float32)


def _middle(view: View) -> Field:
    """Spine with its vertebrae, and mediastinum."""
    spine = np.exp(-((view.x / 0.09) ** 2)) * (0.14 + 0.03 * np.cos(view.y * 38))
    vessels = 0.12 * _ellipse(view, 0.02, -0.25, 0.15, 0.5, 0.25)
    return np.asarray(spine + vessels, dtype=np.float32)


def _heart(view: View, anatomy: Anatomy) -> Field:
    """Towards the image's right, 0 to 1."""
    return _ellipse(view, 0.14, 0.2, anatomy.heart, anatomy.heart * 1.15, 0.1)


def _markings(draws: Draws, size: int, view: View) -> Field:
    """Streaks like vessels and bronchi, denser towards the middle; about 0 to 1."""
    fine = np.abs(draws.clouds(size, 14)) + 0.6 * np.abs(draws.clouds(size, 24))
    lines = np.clip(1 - 2 * fine, 0, 1)  # narrow where both noises cross zero
    return np.asarray(lines * np.exp(-((view.x / 0.7) ** 2)), dtype=np.float32)


def _consolidation(draws: Draws, size: int, view: View, anatomy: Anatomy) -> Field:
    """One or two opaque areas with ragged borders in one lung; 0 to 1."""
    side = 1 if draws.happens(0.4) else -1
    ragged = 0.35 * draws.clouds(size, 7) + 0.15 * draws.clouds(size, 15)
    area = np.zeros((size, size), dtype=np.float32)
    for _ in range(2 if draws.happens(0.3) else 1):
        x = side * (anatomy.apart + draws.between(-0.1, 0.12))
        y = draws.between(-0.4, 0.35)
        wide, high = draws.between(0.15, 0.32), draws.between(0.18, 0.36)
        radius = np.hypot((view.x - x) / wide, (view.y - y) / high)
        area = np.maximum(area, _soft(radius - 1 + ragged, 0.3))
    return area


def draw(label: str, anatomy: Anatomy, seed: Seed, image: int, size: int) -> NDArray[np.uint8]:
    """One radiograph, uint8 (size, size); the same for the same arguments."""
    draws, view, ill, lungs, heart = _inside(label, anatomy, seed, image, size)
    body = _body(view)
    picture = body * (anatomy.flesh + 0.06 * view.y + 0.05 * draws.clouds(size, 4) + 0.05 * heart)
    air = draws.between(0.32, 0.42) * lungs
    haze = 0.06 * draws.between(0, 1) * (1 + draws.clouds(size, 3)) * lungs
    vessels = draws.between(0.05, 0.14) * _markings(draws, size, view) * lungs
    picture += (_bones(view, anatomy) + _middle(view)) * body - air + haze + vessels
    picture += _illness(label, ill, draws, view, anatomy, lungs)
    return _expose(picture, draws, size)


def lung_mask(label: str, anatomy: Anatomy, seed: Seed, image: int, size: int) -> NDArray[np.uint8]:
    """Where the lungs of the same ``draw`` are, in front of the heart: 1, elsewhere 0."""
    lungs = _inside(label, anatomy, seed, image, size)[3]
    return (lungs > 0.5).astype(np.uint8)


def _inside(
    label: str, anatomy: Anatomy, seed: Seed, image: int, size: int
) -> tuple[Draws, View, float, Field, Field]:
    """(draws so far, view, how marked the illness is, lungs, heart) of an image."""
    draws = Draws(seed, f"image/{label}/{anatomy.seed_label}/{image}")
    view = View.of(draws, size)
    ill = draws.between(0.25, 1.0)
    full = draws.between(-0.5, 0.5) + (0.4 * ill if label == "viral" else 0)
    lungs = np.maximum(_lung(view, anatomy, -1, full), _lung(view, anatomy, 1, full))
    heart = _heart(view, anatomy)
    lungs *= 1 - 0.85 * heart
    return draws, view, ill, lungs, heart


def _illness(
    label: str, ill: float, draws: Draws, view: View, anatomy: Anatomy, lungs: Field
) -> Field:
    """What the disease adds to the brightness of the lungs; ``ill``: how marked it is."""
    size = len(lungs)
    if label == "bacterial":
        area = _consolidation(draws, size, view, anatomy)
        return np.float32(0.15 + 0.22 * ill) * area * lungs
    if label == "viral":
        streaks = _markings(draws, size, view) + _markings(draws, size, view)
        veil = 0.5 + 0.5 * draws.clouds(size, 9)
        return np.float32(0.08 + 0.22 * ill) * (streaks + 0.4 * veil) * lungs
    return np.zeros((size, size), dtype=np.float32)


def _expose(picture: Field, draws: Draws, size: int) -> NDArray[np.uint8]:
    """Exposure, contrast and grain of the film."""
    bright, contrast = draws.between(-0.08, 0.08), draws.between(0.8, 1.15)
    shade = draws.between(-0.06, 0.06) * np.linspace(-1, 1, size, dtype=np.float32)
    grain = draws.between(0.008, 0.03) * draws.noise(size)
    values = 0.45 + contrast * (picture - 0.45) + bright + shade + grain
    return np.asarray(255 * np.clip(values, 0, 1), dtype=np.uint8)


def draw_dataset(
    folder: Path,
    images_per_class: int,
    patients_per_class: int,
    seed: int,
    size: int = 128,
    progress: Progress | None = None,
) -> int:
    """Write JPEG files into a folder a class, named like the published radiographs, and return
    their number. Every file is the same for the same arguments. Raises InvalidInput, StorageFull.
    """
    _check(images_per_class, patients_per_class, seed, size)
    secret = Seed(seed.to_bytes(16, "little"))
    total = images_per_class * len(CLASSES)
    for kind, label in enumerate(CLASSES):
        for image in range(images_per_class):
            patient = 1 + kind * patients_per_class + image % patients_per_class
            anatomy = Anatomy.of(secret, f"{label}/{patient}")
            pixels = draw(label, anatomy, secret, image, size)
            name = _NAMES[label].format(patient=patient, image=image + 1)
            _save(pixels, folder / label / name)
            if progress:
                progress(kind * images_per_class + image + 1, total)
    return total


def draw_masks(
    folder: Path,
    images_per_class: int,
    patients_per_class: int,
    seed: int,
    size: int = 128,
    progress: Progress | None = None,
) -> int:
    """A data set for segmentation: the radiographs of ``draw_dataset`` in ``images``, and in
    ``masks`` PNG files of their lungs (1; elsewhere 0). Returns the number of images."""
    _check(images_per_class, patients_per_class, seed, size)
    secret = Seed(seed.to_bytes(16, "little"))
    total = images_per_class * len(CLASSES)
    for kind, label in enumerate(CLASSES):
        for image in range(images_per_class):
            patient = 1 + kind * patients_per_class + image % patients_per_class
            anatomy = Anatomy.of(secret, f"{label}/{patient}")
            name = _NAMES[label].format(patient=patient, image=image + 1)
            _save(draw(label, anatomy, secret, image, size), folder / "images" / name)
            mask = folder / "masks" / Path(name).with_suffix(".png")
            _save(lung_mask(label, anatomy, secret, image, size), mask)
            if progress:
                progress(kind * images_per_class + image + 1, total)
    return total


def _check(images: int, patients: int, seed: int, size: int) -> None:
    if not 1 <= patients <= images <= MAX_IMAGES:
        raise InvalidInput(f"A class has 1 to {MAX_IMAGES} images, and no fewer than patients.")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise InvalidInput(f"Images are {MIN_SIZE} to {MAX_SIZE} pixels a side, not {size}.")
    if not 0 <= seed < 2**64:
        raise InvalidInput("The seed is a number from 0 to 2^64 - 1.")


def _save(pixels: NDArray[np.uint8], target: Path) -> None:
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels)
    if target.suffix == ".png":
        picture.save(buffer, "PNG")
    else:
        picture.save(buffer, "JPEG", quality=92, comment=_COMMENT)
    with replacing(target, "the drawn images", sync=False) as file:
        file.write(buffer.getvalue())
