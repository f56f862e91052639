"""About how much memory a round of local training takes, before any is taken.

Images do not count: they are mapped from files, and the system takes their pages back at need.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from primia.learning.config import TrainingConfig
from primia.learning.hyperparameters import ADAPTIVE
from primia.learning.models import without_weights
from primia.learning.programs.shapes import alive, cost
from primia.learning.spec import ModelSpec

_BYTES = 4
_BASE = 300 << 20  # the libraries themselves
# Of a batch of images: normalised, moved, toned; and the grids they are sampled by.
_IMAGE_COPIES = 8
# What is there beside a layer's input and output: oneDNN brings both into an order of its own; and
# what goes round the layer, in a U-Net as large as they are.
_BESIDE = 2
_BESIDE_MASKS = 3
# Without training 64 images pass a model together, or of large ones so many pixels. A U-Net's
# activations are as large as its images in every layer, so of masks it is fewer.
_TOGETHER = 64
_PIXELS = 1 << 22
_MASK_PIXELS = 1 << 19
# Values of single images' gradients that DP-SGD holds at once on a GPU.
_HELD_VALUES = 128_000_000


def images_together(side: int, *, masks: bool) -> int:
    """Images of ``side`` x ``side`` pixels that pass a model together where nothing is trained."""
    pixels = _MASK_PIXELS if masks else _PIXELS
    return max(2, min(_TOGETHER, pixels // side**2))


def gradients_held(parameters: int) -> int:
    """Images whose own gradients are held at once: bounds memory, changes nothing else."""
    return max(1, _HELD_VALUES // parameters)


def training_bytes(
    spec: ModelSpec, config: TrainingConfig, *, private: bool = False, gpu: bool = False
) -> int:
    """Weights with gradients, moments and copies; then the activations of a batch, which backward
    needs once more, or those of the images that are evaluated together, whichever take more.
    Nothing is computed: shapes are followed through the model.

    ``private``: by DP-SGD, which takes images one by one on a CPU, some together on a ``gpu``.
    """
    values, buffers, activations, peak = _counts(spec)
    # the incoming vector, the change and one copy while they are compared
    copies = 2 + moments(config) + bool(config.proximal) + bool(config.local_stopping) + 3
    kept = copies * (values + buffers)
    batch = config.batch_size
    if private:
        kept += 2 * values + 2 * values  # float64: sums, and the noise before it is rounded
        batch = min(2 * batch, gradients_held(values)) if gpu else 1  # Poisson batches vary
        kept += batch * values
    images = _IMAGE_COPIES * config.batch_size * max(2, spec.channels) * spec.image_size**2
    masks = spec.task == "segmentation"
    together = images_together(spec.image_size, masks=masks)
    evaluation = (_BESIDE_MASKS if masks else _BESIDE) * peak * together
    at_work = max(images + 2 * activations * batch, evaluation)
    return _BASE + _BYTES * (kept + at_work)


def moments(config: TrainingConfig) -> int:
    """Values that the optimiser keeps for each parameter."""
    if config.algorithm == "fedsgd":
        return 0
    if config.optimiser in ADAPTIVE:
        return 2 + config.amsgrad
    moving = bool(config.hyperparameters.momentum)
    return {"sgd": moving, "rmsprop": 1 + moving, "adagrad": 1, "adadelta": 2}[config.optimiser]


def _counts(spec: ModelSpec) -> tuple[int, int, int, int]:
    """(parameters, buffers, values that the layers give for one image, most of them that a layer
    reads and gives)"""
    if spec.program is not None:  # counted, not run: nobody may have approved it yet
        found = cost(spec.program, spec.input_shape)
        most = alive(spec.program, spec.input_shape)
        return found.parameters, found.buffers, found.values, most
    module = without_weights(spec).eval()  # in evaluation mode one image is enough for BatchNorm
    values = sum(tensor.numel() for tensor in module.parameters())
    buffers = sum(tensor.numel() for tensor in module.buffers())
    return values, buffers, *_activations(module, spec)


def _activations(module: nn.Module, spec: ModelSpec) -> tuple[int, int]:
    """Values that the layers give for an image, and the most that one of them reads and gives."""
    counted, most = 0, math.prod(spec.input_shape)

    def count(_part: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal counted, most
        counted += out.numel()
        most = max(most, out.numel() + sum(each.numel() for each in given))

    leaves = [part for part in module.modules() if not list(part.children())]
    hooks = [leaf.register_forward_hook(count) for leaf in leaves]
    with torch.no_grad():
        module(torch.empty(1, *spec.input_shape, device="meta"))
    for hook in hooks:
        hook.remove()
    return counted, most
