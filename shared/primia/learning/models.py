"""Models as torch modules, and their state as a flat vector.

Every module is plain (torch.fx traces it), in the layers that the plan compiler takes:
convolution, BatchNorm, ReLU, pooling, addition, flatten, fully connected.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from primia.learning.layout import Group, InvalidState, Layout, Vector, check_vector
from primia.learning.spec import ModelSpec
from primia.learning.vision import torchvision_models


def create_model(spec: ModelSpec) -> nn.Module:
    """The module in training mode on the CPU, with first weights that depend on the spec alone.

    Input: normalised pixels, float32 (N, channels, image_size, image_size); output (N, classes).
    torch's global generator is neither read nor moved.
    """
    module = _without_weights(spec).to_empty(device="cpu")
    initialise(module, spec.seed)
    return module


def _without_weights(spec: ModelSpec) -> nn.Module:
    """On the meta device, where the libraries' own initialisation draws nothing."""
    with torch.device("meta"):
        return _small_cnn(spec) if spec.architecture == "small_cnn" else _resnet(spec)


def initialise(module: nn.Module, seed: int) -> None:
    """First weights: He et al. (2015) for convolutions (normal, fan out); uniform within
    1/sqrt(fan in) for fully connected layers; BatchNorm as the identity."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Linear):
            bound = 1 / math.sqrt(part.in_features)
            nn.init.uniform_(part.weight, -bound, bound, generator=generator)
            nn.init.uniform_(part.bias, -bound, bound, generator=generator)
        elif isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()


def _resnet(spec: ModelSpec) -> nn.Module:
    """torchvision's ResNet with an output a class and, for grey images, a first convolution of
    one input channel."""
    build = getattr(torchvision_models(), spec.architecture)
    module: nn.Module = build(weights=None, num_classes=len(spec.classes))
    if spec.channels == 1:
        module.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return module


def _small_cnn(spec: ModelSpec) -> nn.Module:
    """Three times convolution, BatchNorm, ReLU, pooling; then global average and one layer."""
    layers: list[nn.Module] = []
    width: int = spec.channels
    for wider in (16, 32, 64):
        layers += [
            nn.Conv2d(width, wider, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(wider),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        ]
        width = wider
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, len(spec.classes))]
    return nn.Sequential(*layers, *head)


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
    return state_layout(_without_weights(spec))


def flatten(module: nn.Module) -> Vector:
    """A copy of the module's state, float32 (layout.size,)."""
    layout = state_layout(module)
    vector = np.empty(layout.size, dtype=np.float32)
    for slot, (_, tensor, _) in zip(layout.slots, _state(module), strict=True):
        vector[slot.span] = tensor.detach().cpu().contiguous().reshape(-1).numpy()
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
    module = create_model(spec)
    unflatten(module, vector)
    return module.eval()
