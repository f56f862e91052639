"""The training of the benchmark's rounds by itself: what one step needs in a process of its own.

python -m benchmarks.bed.step ARCHITECTURE
Prints the most memory that the process has held: Python, torch, the model, a batch, the gradients.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

CLASSES = ("dark", "light")
SIDE = 32  # the smallest that ResNet-18 takes
IMAGES = 4
# One batch of two images, by plain gradient descent.
TRAINING: dict[str, Any] = {
    "batches": 1,
    "batch_size": 2,
    "optimiser": "sgd",
    "learning_rate": 1e-6,
    "momentum": 0.0,
}


def main(architecture: str) -> int:
    from primia.learning.config import TrainingConfig
    from primia.learning.models import create_model
    from primia.learning.spec import ModelSpec
    from primia.learning.training import ImageData, train_locally

    spec = ModelSpec.parse({"architecture": architecture, "classes": CLASSES, "image_size": SIDE})
    labels = np.arange(IMAGES) % len(CLASSES)
    pixels = np.zeros((IMAGES, *spec.input_shape), np.uint8) + 60 * labels[:, None, None, None]
    data = ImageData.of(pixels.astype(np.uint8), labels, spec)
    train_locally(create_model(spec), data, TrainingConfig.parse(TRAINING), seed=1)
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))


if __name__ == "__main__":
    print(main(sys.argv[1]))
