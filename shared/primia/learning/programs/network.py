"""A program as a torch module: plain torch.nn layers, and the listed operators applied in order.

Layers train and evaluate as torch.nn's do, and torch.fx traces the whole, so that the plan compiler
takes what it takes of any model. No code is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from primia.errors import InvalidInput
from primia.learning.programs import document as d
from primia.learning.programs.document import Program, Shape
from primia.learning.programs.shapes import cost


class Network(nn.Module):
    """Input (N, C, H, W), output (N, classes). Raises Misfit for sizes that do not fit."""

    def __init__(self, program: Program, shape: Shape | None = None) -> None:
        super().__init__()
        cost(program, shape)
        self._steps = program.steps
        self._last_use = {
            value: number
            for number, step in enumerate(program.steps, 1)
            for value in d.sources(step)
        }
        for layer in program.layers:
            _place(self, layer.path, _LAYERS[type(layer)](layer))

    def forward(self, images: Tensor) -> Tensor:
        values: dict[int, Tensor] = {0: images}
        for number, step in enumerate(self._steps, 1):
            if isinstance(step, d.Apply):
                values[number] = self.get_submodule(step.layer)(values[step.of])
            else:
                given = [values[each] for each in d.sources(step)]
                values[number] = _STEPS[type(step)](step, *given)
            for used in set(d.sources(step)):
                if self._last_use[used] == number:
                    del values[used]
        return values[len(self._steps)]


class _Folder(nn.Module):
    """Holds the layers whose paths go on."""


def _place(root: nn.Module, path: str, layer: nn.Module) -> None:
    *folders, name = path.split(".")
    here = root
    try:
        for folder in folders:
            if folder not in here._modules:
                here.add_module(folder, _Folder())
            here = here.get_submodule(folder)
        here.add_module(name, layer)
    except KeyError:
        raise InvalidInput(
            f"The layer {path!r} has a name that torch uses itself.", hint="Rename it."
        ) from None


def _conv2d(layer: d.Conv2d) -> nn.Module:
    return nn.Conv2d(
        layer.given, layer.made, layer.kernel, layer.stride, layer.padding, layer.dilation,
        layer.groups, layer.bias,
    )  # fmt: skip


def _batch_norm(layer: d.BatchNorm) -> nn.Module:
    make = nn.BatchNorm2d if layer.maps else nn.BatchNorm1d
    return make(layer.channels, layer.eps, layer.momentum, layer.affine)


def _dropout(layer: d.Dropout) -> nn.Module:
    return nn.Dropout2d(layer.rate) if layer.channels else nn.Dropout(layer.rate)


_LAYERS: Mapping[type[d.Part], Callable[..., nn.Module]] = {
    d.Conv2d: _conv2d,
    d.Linear: lambda layer: nn.Linear(layer.given, layer.made, layer.bias),
    d.BatchNorm: _batch_norm,
    d.GroupNorm: lambda layer: nn.GroupNorm(layer.groups, layer.channels, layer.eps, layer.affine),
    d.LayerNorm: lambda layer: nn.LayerNorm(layer.shape, layer.eps, layer.affine),
    d.Dropout: _dropout,
}

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "relu6": functional.relu6,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda value: functional.gelu(value, approximate="tanh"),
    "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "mish": functional.mish,
    "softplus": functional.softplus,
}
_COMBINATIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "divide": torch.div,
}


def _slope(step: d.Slope, value: Tensor) -> Tensor:
    if step.op == "elu":
        return functional.elu(value, step.constant)
    return functional.leaky_relu(value, step.constant)


def _average(step: d.AveragePool, value: Tensor) -> Tensor:
    return functional.avg_pool2d(
        value, step.kernel, step.stride, step.padding, step.ceil, step.border_counts
    )


def _maximum(step: d.MaxPool, value: Tensor) -> Tensor:
    return functional.max_pool2d(value, step.kernel, step.stride, step.padding, ceil_mode=step.ceil)


def _slice(step: d.Slice, value: Tensor) -> Tensor:
    index = (slice(None),) * step.dimension + (slice(step.start, step.stop, step.step),)
    return value[index]


def _reshape(step: d.Reshape, value: Tensor) -> Tensor:
    return torch.reshape(value, (value.shape[0], *((size or -1) for size in step.shape)))


_STEPS: Mapping[type[d.Part], Callable[..., Tensor]] = {
    d.Activation: lambda step, value: _ACTIVATIONS[step.op](value),
    d.Slope: _slope,
    d.MaxPool: _maximum,
    d.AveragePool: _average,
    d.AdaptivePool: lambda step, value: functional.adaptive_avg_pool2d(value, step.size),
    d.Pad: lambda step, value: functional.pad(value, step.sides),
    d.Combine: lambda step, left, right: _COMBINATIONS[step.op](left, right),
    d.Affine: lambda step, value: value * step.factor + step.shift,
    d.Concatenate: lambda step, *values: torch.cat(values, dim=step.dimension),
    d.Slice: _slice,
    d.Flatten: lambda step, value: torch.flatten(value, step.start),
    d.Reshape: _reshape,
    d.Permute: lambda step, value: value.permute(0, *step.dimensions),
    d.Mean: lambda step, value: torch.mean(value, step.dimensions, step.keep),
}
