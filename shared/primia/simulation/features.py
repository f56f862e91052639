"""Features of images for Fréchet distances, each with a name that says whose they are.

FID proper takes those of an Inception network trained on photographs, whose weights have to be
there as a file. Without them a small network of the project's own stands in, trained to tell the
classes of other images of the same kind: its distances are comparable with one another alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from primia.errors import InvalidInput
from primia.learning.config import TrainingConfig
from primia.learning.models import create_model
from primia.learning.pretrained import read_file
from primia.learning.spec import ModelSpec
from primia.learning.training import ImageData, train_locally
from primia.learning.vision import torchvision_models

INCEPTION_SIDE = 299
INCEPTION_FEATURES = 2048


@dataclass(frozen=True)
class Features:
    """``module``: images from 0 to 1, (n, C, S, S), to features (n, num_features)."""

    name: str
    module: nn.Module


class _Normalised(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, mean: Tensor, std: Tensor, num_features: int) -> None:
        super().__init__()
        self.body, self.num_features = body, num_features
        self.register_buffer("mean", mean.reshape(1, -1, 1, 1))
        self.register_buffer("std", std.reshape(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.body((images - self.mean) / self.std)
        return found


class _Inception(nn.Module):
    """For grey or colour images of any size, which the network sees from -1 to 1."""

    num_features = INCEPTION_FEATURES

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        size = [INCEPTION_SIDE, INCEPTION_SIDE]
        large = functional.interpolate(images, size, mode="bilinear", antialias=True)
        found: Tensor = self.network(2 * large.expand(-1, 3, -1, -1) - 1)
        return found


def trained(data: ImageData, spec: ModelSpec, epochs: int) -> Features:
    """The 64 averaged features of a small CNN trained on these images' classes; the same for the
    same arguments."""
    small = ModelSpec.parse(
        {
            "architecture": "small_cnn",
            "classes": spec.classes,
            "channels": spec.channels,
            "image_size": spec.image_size,
            "mean": spec.mean,
            "std": spec.std,
        }
    )
    network = create_model(small)
    train_locally(network, data, TrainingConfig(epochs=epochs, learning_rate=3e-3), seed=0)
    assert isinstance(network, nn.Sequential)
    head = network[-1]
    assert isinstance(head, nn.Linear)
    width = head.in_features
    name = (
        f"{width} features of a small CNN trained for {epochs} epochs on {len(data)} other images "
        "(not Inception)"
    )
    mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
    return Features(name, _Normalised(network[:-1], mean, std, width).eval())


def inception(weights: Path) -> Features:
    """torchvision's Inception-v3 with its weights file (ImageNet): the 2048 features before its
    last layer. Not the weights that published FIDs are computed with, which are TensorFlow's of
    2015. Raises InvalidInput for a file that does not fit."""
    state = read_file(weights)
    with torch.device("meta"):  # no weights are drawn
        network = torchvision_models().inception_v3(weights=None, init_weights=False)
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError:
        raise InvalidInput(
            f"{weights.name} does not hold the weights of torchvision's Inception-v3.",
            hint="Take the file that torchvision keeps as IMAGENET1K_V1.",
        ) from None
    network.fc = nn.Identity()
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:8]
    name = f"{INCEPTION_FEATURES} features of torchvision's Inception-v3, weights {digest}"
    return Features(name, _Inception(network).eval())
