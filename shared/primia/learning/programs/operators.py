"""What torch.export's operators become in a program, or why they cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.fx import Node

from primia.learning.programs import document as d
from primia.learning.programs.reader import Call, Handler, Reader


def _conv2d(reader: Reader, call: Call) -> d.AnyStep:
    path = reader.path(call, weight="weight", bias="bias")
    made, given, *kernel = call["weight"].meta["val"].shape
    dilation, padding = call.pair("dilation"), call["padding"]
    if padding == "valid":
        padding = [0, 0]
    elif padding == "same":
        spans = [step * (side - 1) for step, side in zip(dilation, kernel, strict=True)]
        if any(span % 2 for span in spans):
            raise call.refuse("padding 'same' around an even kernel is not symmetric")
        padding = [span // 2 for span in spans]
    call.arguments["padding"] = padding
    layer = d.Conv2d(
        path=path, given=given * call["groups"], made=made, kernel=tuple(kernel),
        stride=call.pair("stride"), padding=call.pair("padding"), dilation=dilation,
        groups=call["groups"], bias=call["bias"] is not None,
    )  # fmt: skip
    return reader.apply(call, layer)


def _linear(reader: Reader, call: Call) -> d.AnyStep:
    path = reader.path(call, weight="weight", bias="bias")
    made, given = call["weight"].meta["val"].shape
    layer = d.Linear(path=path, given=given, made=made, bias=call["bias"] is not None)
    return reader.apply(call, layer)


def _batch_norm(reader: Reader, call: Call) -> d.AnyStep:
    if call["running_mean"] is None or call["momentum"] is None:
        raise call.refuse("it keeps no running statistics by momentum")
    reader.mode(call, call["training"])
    names = {"running_mean": "running_mean", "running_var": "running_var"}
    layer = d.BatchNorm(
        path=reader.path(call, weight="weight", bias="bias", **names),
        channels=reader.size(call, "running_mean", 0),
        maps=len(call["input"].meta["val"].shape) == 4,
        eps=call["eps"], momentum=call["momentum"], affine=_affine(call),
    )  # fmt: skip
    return reader.apply(call, layer)


def _affine(call: Call) -> bool:
    if (call["weight"] is None) != (call["bias"] is None):
        raise call.refuse("it has a weight or a bias alone")
    return call["weight"] is not None


def _group_norm(reader: Reader, call: Call) -> d.AnyStep:
    if not _affine(call):
        raise call.refuse("it has no weights, so that its layer has no name")
    layer = d.GroupNorm(
        path=reader.path(call, weight="weight", bias="bias"), groups=call["num_groups"],
        channels=reader.size(call, "weight", 0), eps=call["eps"],
    )  # fmt: skip
    return reader.apply(call, layer)


def _layer_norm(reader: Reader, call: Call) -> d.AnyStep:
    if not _affine(call):
        raise call.refuse("it has no weights, so that its layer has no name")
    layer = d.LayerNorm(
        path=reader.path(call, weight="weight", bias="bias"),
        shape=tuple(call["normalized_shape"]), eps=call["eps"],
    )  # fmt: skip
    return reader.apply(call, layer)


def _dropout(reader: Reader, call: Call) -> d.AnyStep:
    reader.mode(call, call["train"])
    channels = call.name.startswith("feature")
    layer = d.Dropout(path=reader.unused("dropout"), rate=call["p"], channels=channels)
    return reader.apply(call, layer)


def _activation(name: d.ActivationName) -> Handler:
    return lambda reader, call: d.Activation(op=name, of=reader.value(call, call.first()))


def _gelu(reader: Reader, call: Call) -> d.AnyStep:
    name: d.ActivationName = "gelu" if call["approximate"] == "none" else "gelu_tanh"
    return d.Activation(op=name, of=reader.value(call, call.first()))


def _softplus(reader: Reader, call: Call) -> d.AnyStep:
    if (call["beta"], call["threshold"]) != (1, 20):
        raise call.refuse("its beta or threshold is not torch's default")
    return d.Activation(op="softplus", of=reader.value(call, call.first()))


def _hardtanh(reader: Reader, call: Call) -> d.AnyStep:
    if (call["min_val"], call["max_val"]) != (0, 6):
        raise call.refuse("only that of ReLU6, from 0 to 6, is taken")
    return d.Activation(op="relu6", of=reader.value(call, call.first()))


def _leaky(reader: Reader, call: Call) -> d.AnyStep:
    of = reader.value(call, call.first())
    return d.Slope(op="leaky_relu", of=of, constant=call["negative_slope"])


def _elu(reader: Reader, call: Call) -> d.AnyStep:
    if (call["scale"], call["input_scale"]) != (1, 1):
        raise call.refuse("its scale is not 1")
    return d.Slope(op="elu", of=reader.value(call, call.first()), constant=call["alpha"])


def _max_pool(reader: Reader, call: Call) -> d.AnyStep:
    if call.pair("dilation") != (1, 1):
        raise call.refuse("its dilation is not 1")
    return d.MaxPool(
        of=reader.value(call, call.first()), kernel=call.pair("kernel_size"),
        stride=_stride(call), padding=call.pair("padding"), ceil=call["ceil_mode"],
    )  # fmt: skip


def _average_pool(reader: Reader, call: Call) -> d.AnyStep:
    if call["divisor_override"] is not None:
        raise call.refuse("it has a divisor of its own")
    return d.AveragePool(
        of=reader.value(call, call.first()), kernel=call.pair("kernel_size"),
        stride=_stride(call), padding=call.pair("padding"), ceil=call["ceil_mode"],
        border_counts=call["count_include_pad"],
    )  # fmt: skip


def _stride(call: Call) -> tuple[int, int]:
    return call.pair("stride") if call["stride"] else call.pair("kernel_size")


def _adaptive(reader: Reader, call: Call) -> d.AnyStep:
    return d.AdaptivePool(of=reader.value(call, call.first()), size=call.pair("output_size"))


def _pad(reader: Reader, call: Call) -> d.AnyStep:
    sides = [*call["pad"], 0, 0][:4]
    if call.arguments.get("mode", "constant") != "constant" or call["value"] not in (None, 0):
        raise call.refuse("only zeros are taken")
    if len(call["pad"]) > 4:
        raise call.refuse("only height and width are padded")
    return d.Pad.model_validate({"of": reader.value(call, call.first()), "sides": sides})


def _combination(name: Any) -> Handler:
    """Of two tensors, or of a tensor and a number."""

    def handle(reader: Reader, call: Call) -> d.AnyStep:
        left, right = call["self"], call["other"]
        alpha = call.arguments.get("alpha", 1)
        if isinstance(right, Node):
            if alpha != 1:
                raise call.refuse("its alpha is not 1")
            return d.Combine(op=name, of=(reader.value(call, left), reader.value(call, right)))
        if not isinstance(right, int | float) or (name == "divide" and right == 0):
            raise call.refuse(f"it has the constant {right!r}")
        factor, shift = _AFFINE[name](float(right) * alpha)
        return d.Affine(of=reader.value(call, left), factor=factor, shift=shift)

    return handle


_AFFINE: Mapping[str, Callable[[float], tuple[float, float]]] = {
    "add": lambda number: (1.0, number),
    "subtract": lambda number: (1.0, -number),
    "multiply": lambda number: (number, 0.0),
    "divide": lambda number: (1.0 / number, 0.0),
    "reverse": lambda number: (-1.0, number),
}


def _negative(reader: Reader, call: Call) -> d.AnyStep:
    return d.Affine(of=reader.value(call, call.first()), factor=-1.0)


def _concatenate(reader: Reader, call: Call) -> d.AnyStep:
    of = tuple(reader.value(call, each) for each in call["tensors"])
    return d.Concatenate(of=of, dimension=call.dimension("dim"))


def _slice(reader: Reader, call: Call) -> d.AnyStep | None:
    length = call.first().meta["val"].shape[call["dim"]]
    start, stop = call["start"] or 0, call["end"]
    if (start, call["step"]) == (0, 1) and (stop is None or stop == 2**63 - 1):
        return None
    at = call.dimension("dim")
    stop = length if stop is None else min(stop, length)
    start, stop = (each + length if each < 0 else each for each in (start, stop))
    of = reader.value(call, call.first())
    return d.Slice(of=of, dimension=at, start=start, stop=stop, step=call["step"])


def _flatten(reader: Reader, call: Call) -> d.AnyStep:
    rank = len(call.first().meta["val"].shape)
    if call["end_dim"] % rank != rank - 1:
        raise call.refuse("only flattening up to the last dimension is taken")
    return d.Flatten(of=reader.value(call, call.first()), start=call.dimension("start_dim"))


def _reshape(reader: Reader, call: Call) -> d.AnyStep:
    first, *rest = call["size"] if "size" in call.arguments else call["shape"]
    if (isinstance(first, int) and first != -1) or not all(isinstance(n, int) for n in rest):
        raise call.refuse("the batch must stay the first dimension")
    return d.Reshape(
        of=reader.value(call, call.first()), shape=tuple(0 if n == -1 else n for n in rest)
    )


def _squeeze(reader: Reader, call: Call) -> d.AnyStep:
    return d.Reshape(of=reader.value(call, call.first()), shape=call.shape())


def _permute(reader: Reader, call: Call) -> d.AnyStep:
    rank = len(call.first().meta["val"].shape)
    order = [each % rank for each in call["dims"]]
    return _reorder(reader, call, order)


def _transpose(reader: Reader, call: Call) -> d.AnyStep:
    order = list(range(len(call.first().meta["val"].shape)))
    left, right = call.dimension("dim0"), call.dimension("dim1")
    order[left], order[right] = right, left
    return _reorder(reader, call, order)


def _reorder(reader: Reader, call: Call, order: list[int]) -> d.AnyStep:
    if order[0] != 0:
        raise call.refuse("the batch must stay the first dimension")
    return d.Permute(of=reader.value(call, call.first()), dimensions=tuple(order[1:]))


def _mean(reader: Reader, call: Call) -> d.AnyStep:
    if not call.arguments.get("dim"):
        raise call.refuse("it must name its dimensions")
    dimensions = tuple(call.dimension("dim", each) for each in call["dim"])
    of = reader.value(call, call.first())
    return d.Mean(of=of, dimensions=dimensions, keep=call["keepdim"])


def _unchanged(_reader: Reader, _call: Call) -> None:
    return None


IGNORED = frozenset({"sym_size", "_assert_scalar", "_assert_tensor_metadata"})
HANDLERS: Mapping[str, Handler] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "dropout": _dropout,
    "feature_dropout": _dropout,
    "relu": _activation("relu"),
    "relu6": _activation("relu6"),
    "silu": _activation("silu"),
    "hardswish": _activation("hardswish"),
    "hardsigmoid": _activation("hardsigmoid"),
    "sigmoid": _activation("sigmoid"),
    "tanh": _activation("tanh"),
    "mish": _activation("mish"),
    "gelu": _gelu,
    "softplus": _softplus,
    "hardtanh": _hardtanh,
    "leaky_relu": _leaky,
    "elu": _elu,
    "max_pool2d": _max_pool,
    "avg_pool2d": _average_pool,
    "adaptive_avg_pool2d": _adaptive,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "add": _combination("add"),
    "sub": _combination("subtract"),
    "rsub": _combination("reverse"),
    "mul": _combination("multiply"),
    "div": _combination("divide"),
    "neg": _negative,
    "cat": _concatenate,
    "slice": _slice,
    "flatten": _flatten,
    "view": _reshape,
    "reshape": _reshape,
    "_unsafe_view": _reshape,
    "squeeze": _squeeze,
    "unsqueeze": _squeeze,
    "permute": _permute,
    "transpose": _transpose,
    "mean": _mean,
    "contiguous": _unchanged,
    "clone": _unchanged,
    "detach": _unchanged,
    "alias": _unchanged,
}
