"""About how much memory a round of local training takes, before any is taken."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from primia.learning.config import ADAPTIVE, TrainingConfig
from primia.learning.models import without_weights
from primia.learning.programs.shapes import cost
from primia.learning.spec import ModelSpec

_BYTES = 4
_BASE = 300 << 20  # the libraries themselves


def training_bytes(spec: ModelSpec, config: TrainingConfig) -> int:
    """Weights with gradients, moments and copies, and the activations of a batch, which backward
    needs once more. Nothing is computed: shapes are followed through the model."""
    values, activations = _counts(spec, config.batch_size)
    moments = 2 if config.optimiser in ADAPTIVE else 1
    # the incoming vector, the change and one copy while they are compared
    copies = 2 + moments + bool(config.proximal) + bool(config.local_stopping) + 3
    return _BASE + _BYTES * (values * copies + 2 * activations)


def _counts(spec: ModelSpec, batch: int) -> tuple[int, int]:
    """(parameters, values that the layers give for a batch)"""
    if spec.program is not None:  # counted, not run: nobody may have approved it yet
        found = cost(spec.program, spec.input_shape)
        return found.parameters, found.values * batch
    module = without_weights(spec)
    values = sum(tensor.numel() for tensor in module.parameters())
    return values, _activations(module, spec, batch)


def _activations(module: nn.Module, spec: ModelSpec, batch: int) -> int:
    """Values that the layers give out for a batch."""
    counted = 0

    def count(_part: nn.Module, _given: object, out: Tensor) -> None:
        nonlocal counted
        counted += out.numel()

    leaves = [part for part in module.modules() if not list(part.children())]
    hooks = [leaf.register_forward_hook(count) for leaf in leaves]
    with torch.no_grad():
        module(torch.empty(batch, *spec.input_shape, device="meta"))
    for hook in hooks:
        hook.remove()
    return counted
