"""What a model owner gets to see of sites' images in a round of training, made by the code that the
sites run: the update of one site (no secure aggregation), the mean that secure aggregation opens,
and a site's update with differential privacy.

Each is the sites' one step of gradient descent (FedSGD, no augmentation): of all that can be
configured what tells most of the images, since an update is then a gradient. More steps a round,
augmentation and adaptive optimisers blur it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from primia.aggregation.terms import Groups
from primia.errors import InvalidInput
from primia.learning.accounting import DpSgd, check_norm, release_of_round
from primia.learning.batches import Stepper
from primia.learning.config import TrainingConfig
from primia.learning.layout import Vector
from primia.learning.models import flatten, load_model, spec_layout
from primia.learning.objective import Batch
from primia.learning.optimisers import create_optimiser
from primia.learning.spec import ModelSpec
from primia.learning.training import ImageData, local_seed, train_locally
from primia.simulation.secure import secure_mean

RATE = 0.1  # of the one step: the update is the gradient times this


@dataclass(frozen=True)
class Exposure:
    """``change``: what the owner sees, float32 (layout.size,); ``sizes``: how many images each site
    has, which the owner knows; ``clip_norm``: of DP-SGD, which it has set."""

    change: Vector
    sizes: tuple[int, ...]
    clip_norm: float | None = None

    @property
    def images(self) -> int:
        return sum(self.sizes)


def of_image(spec: ModelSpec, weights: Vector, data: ImageData) -> Exposure:
    """A step along the gradient of a single image. No site sends one: training takes no fewer than
    two (``train_locally``). It is the literature's reference, and the attacker's best case."""
    _check(data, least=1)
    if len(data) != 1:
        raise InvalidInput(f"One image is stepped along, not {len(data)}.")
    module, config = load_model(spec, weights).train(), _settings(1)
    images, labels = data.batch(np.arange(1), torch.device("cpu"))
    stepper = Stepper(module, create_optimiser(module, config), config, images.device, samples=1)
    stepper.step(Batch(images, labels, labels))
    stepper.finish()
    return Exposure(flatten(module) - weights, (1,))


def of_site(spec: ModelSpec, weights: Vector, data: ImageData) -> Exposure:
    """One site's update, as a run without secure aggregation shows it."""
    return Exposure(_update(spec, weights, data, "site"), (len(data),))


def of_sum(spec: ModelSpec, weights: Vector, sites: Mapping[str, ImageData]) -> Exposure:
    """What secure aggregation opens of the sites' updates: their mean, weighted by images."""
    names = sorted(sites)
    changes = {name: _update(spec, weights, sites[name], name) for name in names}
    sizes = {name: len(sites[name]) for name in names}
    layout = spec_layout(spec)
    groups = Groups(layout.group_size("parameters"), layout.group_size("buffers"))
    return Exposure(secure_mean(changes, sizes, groups), tuple(sizes[name] for name in names))


def of_private_site(spec: ModelSpec, weights: Vector, data: ImageData, dp: DpSgd) -> Exposure:
    """One site's update by one step of DP-SGD over all of its images, which costs it dp's ε. Drawn
    anew each time: its noise has no seed."""
    from primia.learning.private import train_privately  # Opacus: only where it is needed

    _check(data, least=2)
    check_norm(spec)
    module, config = load_model(spec, weights), _private_settings(len(data))
    release = release_of_round(len(data), config, dp, planned=1)
    train_privately(module, data, config, dp, release, seed=0)
    return Exposure(flatten(module) - weights, (len(data),), dp.clip_norm)


def gradient(spec: ModelSpec, exposure: Exposure) -> tuple[Tensor, ...]:
    """The gradient that the step went along, one tensor a parameter in the module's order."""
    layout = spec_layout(spec)
    if exposure.change.shape != (layout.size,):
        raise InvalidInput(f"{exposure.change.shape} values are no change of {spec.architecture}.")
    return tuple(
        torch.from_numpy(exposure.change[slot.span].reshape(slot.shape) / np.float32(-RATE))
        for slot in layout.slots
        if slot.group == "parameters"
    )


def _update(spec: ModelSpec, weights: Vector, data: ImageData, name: str) -> Vector:
    _check(data, least=2)
    module = load_model(spec, weights)
    train_locally(module, data, _settings(len(data)), local_seed(0, 1, name))
    change: Vector = flatten(module) - weights
    return change


def _settings(images: int) -> TrainingConfig:
    """FedSGD whose one step has all images in one batch."""
    return TrainingConfig(
        algorithm="fedsgd", batch_size=max(2, images), learning_rate=RATE, augment=False
    )


def _private_settings(images: int) -> TrainingConfig:
    """The same step by DP-SGD: every image is in the batch."""
    return TrainingConfig(
        batches=1,
        batch_size=images,
        optimiser="sgd",
        momentum=0.0,
        learning_rate=RATE,
        augment=False,
    )


def _check(data: ImageData, least: int) -> None:
    if data.masks:
        raise InvalidInput("The attack is on classification, not on segmentation.")
    if len(data) < least:
        raise InvalidInput(f"A step needs {least} images or more, not {len(data)}.")
