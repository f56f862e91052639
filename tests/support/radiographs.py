"""Small drawn images that a classifier can learn, as files in class folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def draw(root: Path, per_class: int, seed: int, classes=("normal", "viral"), size: int = 32):
    """``root``/CLASS/personN_CLASS_1.png: class number k has k + 1 bright bars."""
    generator = np.random.default_rng(seed)
    for number, label in enumerate(classes):
        (root / label).mkdir(parents=True, exist_ok=True)
        for image in range(per_class):
            pixels = generator.integers(0, 90, (size, size))  # (size, size)
            for bar in range(number * 2 + 1):
                top = int(generator.integers(0, size - 4)) if bar else 2
                pixels[top : top + 4] += 120
            person = seed * 1000 + number * 100 + image
            file = root / label / f"person{person}_{label}_1.png"
            Image.fromarray(pixels.astype(np.uint8)).save(file)
    return root
