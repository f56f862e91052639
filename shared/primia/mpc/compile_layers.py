"""One traced torch call -> one node of the float64 graph, or a refusal with the reason.

Layers are recognised by their exact torch.nn type, functions by identity; everything else is
refused by its module path, because a subclass or a hook may compute something else than the type
it is derived from.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.fx import Node as TorchNode
from torch.nn import functional

from primia.errors import UnsupportedModel
from primia.mpc.compile_graph import (
    Addition,
    Average,
    Conv,
    Flat,
    Floats,
    Linear,
    Maximum,
    Node,
    Norm,
    Pair,
    Rectify,
    Resample,
    Shape,
    Statistics,
    refuse,
)

Translate = Callable[["Call"], Node | None]  # None: the identity


class Call:
    """One traced call: its name, its module if it is one, its arguments and its shapes."""

    def __init__(self, node: TorchNode, name: str, module: nn.Module | None) -> None:
        self._node = node
        self.name = name
        self._owner = _owner(node)
        self.module = cast(Any, module)
        self.tensors = [arg for arg in node.args if isinstance(arg, TorchNode) and is_tensor(arg)]
        self.sources: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        if self.module is not None:
            return type(self.module).__name__
        if self._node.op == "get_attr":
            return "parameter"
        target = self._node.target
        return target if isinstance(target, str) else getattr(target, "__name__", str(target))

    def argument(self, position: int, name: str, default: Any) -> Any:
        """A function's argument; a module's attribute of the same name."""
        if self.module is not None:
            return getattr(self.module, name, default)
        if len(self._node.args) > position:
            return self._node.args[position]
        return self._node.kwargs.get(name, default)

    def shape(self) -> Shape:
        return shape_of(self._node)

    def input_shape(self) -> Shape:
        return shape_of(self.tensors[0])

    def refuse(self, reason: str) -> UnsupportedModel:
        """Names the layer by its path; a function by that of the module that calls it."""
        function = self._node.op in ("call_function", "call_method")
        path = f"{self._owner}." if function and self._owner else ""
        return refuse(path + self.name, self.kind, reason)

    def pair(self, position: int, name: str, default: Any) -> Pair:
        value = self.argument(position, name, default)
        pair = (value, value) if isinstance(value, int) else tuple(value)
        if len(pair) == 1:
            pair = pair * 2
        if len(pair) != 2 or not all(isinstance(size, int) for size in pair):
            raise self.refuse(f"{name} {value!r} is not a pair of integers")
        return cast(Pair, pair)


def _owner(node: TorchNode) -> str:
    """The path of the module in whose forward pass a function is called; empty: the outermost."""
    stack = cast(dict[str, Any], node.meta.get("nn_module_stack", {}))
    return next(reversed(stack), "")


def is_tensor(node: TorchNode) -> bool:
    return hasattr(node.meta.get("tensor_meta"), "shape")


def shape_of(node: TorchNode) -> Shape:
    return tuple(node.meta["tensor_meta"].shape)[1:]  # without the batch


def translation(node: TorchNode, call: Call) -> Translate | None:
    if node.op == "call_module":
        if call.module._forward_hooks or call.module._forward_pre_hooks:
            raise call.refuse("it carries a hook, which may change what it computes")
        return _MODULES.get(type(call.module))
    if node.op == "call_function":
        return _FUNCTIONS.get(cast(Any, node.target))
    if node.op == "call_method":
        return _METHODS.get(str(node.target))
    if node.op == "get_attr":
        raise call.refuse("a tensor of the module is used outside of a torch.nn layer")
    return None


def _floats(call: Call, tensor: Any, what: str) -> Floats:
    values = cast(Floats, tensor.detach().to("cpu", torch.float64).numpy())
    if not np.isfinite(values).all():
        raise call.refuse(f"its {what} holds a value that is not finite")
    return values


def _bias(call: Call, size: int) -> Floats:
    if call.module.bias is None:
        return np.zeros(size)
    return _floats(call, call.module.bias, "bias")


def _linear(call: Call) -> Node:
    weight = _floats(call, call.module.weight, "weight")  # (out, in)
    return Linear(call.name, call.sources, weight, _bias(call, len(weight)), None)


def _conv(call: Call) -> Node:
    layer = call.module
    if call.pair(0, "dilation", 1) != (1, 1):
        raise call.refuse(f"its dilation {layer.dilation} is not 1")
    if layer.padding_mode != "zeros":
        raise call.refuse(f"its padding_mode is {layer.padding_mode!r}, not 'zeros'")
    weight = _floats(call, layer.weight, "weight")  # (out, in / groups, height, width)
    return Conv(
        call.name,
        call.sources,
        weight,
        _bias(call, len(weight)),
        None,
        stride=call.pair(0, "stride", 1),
        padding=_conv_padding(call),
        groups=layer.groups,
    )


def _conv_padding(call: Call) -> Pair:
    padding = call.module.padding
    if padding == "valid":
        return (0, 0)
    if padding == "same":
        height, width = call.module.kernel_size
        if height % 2 == 0 or width % 2 == 0:
            raise call.refuse("padding 'same' around an even kernel is not symmetric")
        return (height // 2, width // 2)
    return call.pair(0, "padding", 0)


def _norm(call: Call) -> Node:
    layer = call.module
    if layer.running_mean is None or layer.running_var is None:
        raise call.refuse("it keeps no running statistics (track_running_stats)")
    mean = _floats(call, layer.running_mean, "running mean")
    variance = _floats(call, layer.running_var, "running variance")
    if (variance < 0).any() or layer.eps <= 0:
        raise call.refuse("its running variance is negative")
    gamma, beta = np.ones_like(mean), np.zeros_like(mean)
    if layer.affine:
        gamma, beta = _floats(call, layer.weight, "weight"), _floats(call, layer.bias, "bias")
    scale = gamma / np.sqrt(variance + layer.eps)
    learned = Statistics(mean=beta, deviation=np.abs(gamma))
    return Norm(call.name, call.sources, scale, beta - scale * mean, learned)


def _max_pool(call: Call) -> Node:
    if call.pair(4, "dilation", 1) != (1, 1):
        raise call.refuse("its dilation is not 1")
    if call.argument(6, "return_indices", False):
        raise call.refuse("it returns indices")
    return Maximum(call.name, call.sources, *_window(call, ceil_mode=5))


def _average_pool(call: Call) -> Node:
    kernel, stride, padding = _window(call, ceil_mode=4)
    if padding != (0, 0) and not call.argument(5, "count_include_pad", True):
        raise call.refuse("with count_include_pad=False its divisor differs at the border")
    divisor = call.argument(6, "divisor_override", None) or kernel[0] * kernel[1]
    return Average(call.name, call.sources, kernel, stride, padding, divisor)


def _window(call: Call, ceil_mode: int) -> tuple[Pair, Pair, Pair]:
    if call.argument(ceil_mode, "ceil_mode", False):
        raise call.refuse("ceil_mode is set")
    if len(call.input_shape()) != 3:
        raise call.refuse(f"it needs an input (C, H, W), not {call.input_shape()}")
    kernel = call.pair(1, "kernel_size", None)
    stride = call.pair(2, "stride", None) if call.argument(2, "stride", None) else kernel
    return kernel, stride, call.pair(3, "padding", 0)


def _adaptive_average(call: Call) -> Node | None:
    size, wanted = call.input_shape(), call.shape()
    if len(size) != 3:
        raise call.refuse(f"it needs an input (C, H, W), not {size}")
    if size[1] % wanted[1] or size[2] % wanted[2]:
        rows, columns = _averages(size[1], wanted[1]), _averages(size[2], wanted[2])
        return Resample(call.name, call.sources, rows, columns)
    return _average(call, (size[1] // wanted[1], size[2] // wanted[2]))


def _averages(given: int, made: int) -> Floats:
    """(made, given): the mean over floor(i given / made) to ceil((i + 1) given / made), as torch
    has it."""
    found = np.zeros((made, given))
    for i in range(made):
        start, stop = i * given // made, -(-(i + 1) * given // made)
        found[i, start:stop] = 1 / (stop - start)
    return found


def _mean(call: Call) -> Node | None:
    shape = call.input_shape()
    axes = call.argument(1, "dim", None)
    axes = (axes,) if isinstance(axes, int) else tuple(axes or ())
    if len(shape) != 3 or {axis % 4 for axis in axes} != {2, 3} or len(call.shape()) != 3:
        raise call.refuse("only the mean over height and width, with keepdim, is average pooling")
    return _average(call, (shape[1], shape[2]))


def _average(call: Call, kernel: Pair) -> Node | None:
    if kernel == (1, 1):
        return None
    return Average(call.name, call.sources, kernel, kernel, (0, 0), kernel[0] * kernel[1])


def _flatten(call: Call) -> Node | None:
    before, after = call.input_shape(), call.shape()
    if after == before:
        return None
    if len(after) != 1 or after[0] != int(np.prod(before)):
        raise call.refuse(f"it reshapes {before} to {after}; only flattening to a vector is taken")
    return Flat(call.name, call.sources)


def _relu(call: Call) -> Node:
    return Rectify(call.name, call.sources)


def _add(call: Call) -> Node:
    if len(call.sources) != 2 or call.argument(3, "alpha", 1) != 1:
        raise call.refuse("only the sum of two layers' outputs is taken, no constant or factor")
    return Addition(call.name, call.sources)


def _identity(call: Call) -> None:
    if call.module is None and call.argument(2, "training", True):
        raise call.refuse("dropout is switched on; pass training=self.training")


def _unchanged(_: Call) -> None:
    """Memory layout only."""


_MODULES: dict[type[nn.Module], Translate] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm2d: _norm,
    nn.BatchNorm1d: _norm,
    nn.ReLU: _relu,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _adaptive_average,
    nn.Flatten: _flatten,
    nn.Dropout: _identity,
    nn.Dropout1d: _identity,
    nn.Dropout2d: _identity,
    nn.Identity: _identity,
}
_FUNCTIONS: dict[Any, Translate] = {
    operator.add: _add,
    operator.iadd: _add,
    torch.add: _add,
    torch.relu: _relu,
    functional.relu: _relu,
    functional.max_pool2d: _max_pool,
    torch.max_pool2d: _max_pool,
    functional.avg_pool2d: _average_pool,
    functional.adaptive_avg_pool2d: _adaptive_average,
    functional.dropout: _identity,
    torch.flatten: _flatten,
    torch.reshape: _flatten,
    torch.mean: _mean,
}
_METHODS: dict[str, Translate] = {
    "add": _add,
    "add_": _add,
    "relu": _relu,
    "relu_": _relu,
    "flatten": _flatten,
    "view": _flatten,
    "reshape": _flatten,
    "mean": _mean,
    "contiguous": _unchanged,
}
