"""Models as torch modules, and their state as a flat vector. What modules there are: ``zoo``."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from primia.learning.layout import Group, InvalidState, Layout, Vector, check_vector
from primia.learning.spec import ModelSpec
from primia.learning.zoo import build


def create_model(spec: ModelSpec) -> nn.Module:
    """The module in training mode on the CPU, with first weights that depend on the spec alone.

    Input: normalised pixels, float32 (N, channels, image_size, image_size); output (N, classes).
    torch's global generator is neither read nor moved.
    """
    module = without_weights(spec).to_empty(device="cpu")
    initialise(module, spec.seed)
    return module


def without_weights(spec: ModelSpec) -> nn.Module:
    """On the meta device, where the libraries' own initialisation draws nothing."""
    with torch.device("meta"):
        return build(spec)


def initialise(module: nn.Module, seed: int) -> None:
    """First weights: He et al. (2015) for convolutions (normal, fan out); uniform within
    1/sqrt(fan in) for fully connected layers; norms as the identity."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Linear):
            bound = 1 / math.sqrt(part.in_features)
            nn.init.uniform_(part.weight, -bound, bound, generator=generator)
            if part.bias is not None:
                nn.init.uniform_(part.bias, -bound, bound, generator=generator)
        elif isinstance(part, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm):
            part.reset_parameters()


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor, Group]]:
    for name, parameter in module.named_parameters():
        yield name, parameter, "parameters"
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            yield name, buffer, "buffers"


def state_layout(module: nn.Module) -> Layout:
    """The order of the module's state: parameters, then floating-point buffers.

    Raises InvalidState for a tensor that is not float32.
    """
    rows: list[tuple[str, tuple[int, ...], Group]] = []
    for name, tensor, group in _state(module):
        if tensor.dtype != torch.float32:
            raise InvalidState(f"Tensor {name!r} is {tensor.dtype}; float32 is needed.")
        rows.append((name, tuple(tensor.shape), group))
    return Layout.of(rows)


def spec_layout(spec: ModelSpec) -> Layout:
    """The layout of a spec's model, without its weights in memory."""
    if spec.layout is not None:
        return spec.state_layout()
    return state_layout(without_weights(spec))


def flatten(module: nn.Module, out: Vector | None = None) -> Vector:
    """The module's state, float32 (layout.size,): a copy, or in ``out``, where state that lies
    there already (``load_into``) is left as it is."""
    layout = state_layout(module)
    vector = np.empty(layout.size, dtype=np.float32) if out is None else out
    for slot, (_, tensor, _) in zip(layout.slots, _state(module), strict=True):
        values = tensor.detach().cpu().contiguous().reshape(-1).numpy()
        if values.ctypes.data != vector[slot.span].ctypes.data:
            vector[slot.span] = values
    return vector


def unflatten(module: nn.Module, vector: Vector) -> None:
    """Overwrite the module's state. Raises InvalidState for a wrong length, type or NaN.

    A running variance below zero becomes zero: the mean of quantised variances may end a
    quantisation step below, and BatchNorm takes the root.
    """
    layout = state_layout(module)
    check_vector(vector, layout)
    with torch.no_grad():
        for slot, (_, tensor, _) in zip(layout.slots, _state(module), strict=True):
            values = torch.from_numpy(vector[slot.span].reshape(slot.shape).copy())
            tensor.copy_(values.clamp_(min=0) if slot.name.endswith("running_var") else values)


def load_model(spec: ModelSpec, vector: Vector) -> nn.Module:
    """The spec's module with this state, in evaluation mode."""
    module = _empty(spec)
    unflatten(module, vector)
    return module.eval()


def load_into(spec: ModelSpec, vector: Vector) -> nn.Module:
    """``load_model`` without a copy: the vector is the module's state, and training changes it.

    ``flatten(module, vector)`` afterwards, for what a device or a layer has moved elsewhere.
    """
    module = _empty(spec)  # its own memory is never touched
    layout = state_layout(module)
    check_vector(vector, layout)
    for slot, (_, tensor, _) in zip(layout.slots, _state(module), strict=True):
        values = torch.from_numpy(vector[slot.span].reshape(slot.shape))
        tensor.data = values.clamp_(min=0) if slot.name.endswith("running_var") else values
    return module.eval()


def _empty(spec: ModelSpec) -> nn.Module:
    module = without_weights(spec).to_empty(device="cpu")
    for buffer in module.buffers():
        if not buffer.is_floating_point():
            buffer.zero_()  # BatchNorm's counter, which is no part of the state
    return module
