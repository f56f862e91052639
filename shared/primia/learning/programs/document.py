"""The format of a program, and its strict parsing; nothing here imports torch.

A program is known by the SHA-256 of its canonical JSON, and that is what a site approves. Sizes of
tensors are those of one image: the batch is every tensor's first dimension and is never named, so
that no step can mix the images of a batch. (BatchNorm alone does.)
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StringConstraints,
    ValidationError,
    model_validator,
)

from primia.errors import InvalidInput

MAX_TEXT_BYTES = 256 << 10
MAX_LAYERS = 1_000
MAX_STEPS = 4_000
MAX_SIZE = 1 << 20  # of one dimension
MAX_DIMENSIONS = 6  # without the batch

Size = Annotated[StrictInt, Field(ge=1, le=MAX_SIZE)]
Small = Annotated[StrictInt, Field(ge=1, le=512)]
Border = Annotated[StrictInt, Field(ge=0, le=512)]
# Of the results so far: 0 is the image, n what the n-th step gives.
Value = Annotated[StrictInt, Field(ge=0, le=MAX_STEPS)]
# As in torch, where the batch is dimension 0.
Dimension = Annotated[StrictInt, Field(ge=1, le=MAX_DIMENSIONS)]
Constant = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Epsilon = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Shape = tuple[int, ...]


# ``block1.conv``, as users call their layers.
Path = Annotated[
    str, StringConstraints(max_length=200, pattern=r"^[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*$")
]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Layer(Part):
    path: Path


class Conv2d(Layer):
    kind: Literal["conv2d"] = "conv2d"
    given: Size
    made: Size
    kernel: tuple[Small, Small]
    stride: tuple[Small, Small] = (1, 1)
    padding: tuple[Border, Border] = (0, 0)
    dilation: tuple[Small, Small] = (1, 1)
    groups: Size = 1
    bias: StrictBool = True

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.given % self.groups or self.made % self.groups:
            raise ValueError(f"{self.groups} groups do not divide {self.given} and {self.made}")
        return self


class Linear(Layer):
    kind: Literal["linear"] = "linear"
    given: Size
    made: Size
    bias: StrictBool = True


class BatchNorm(Layer):
    """Over maps (C, H, W) or vectors (C,): what it is applied to."""

    kind: Literal["batch_norm"] = "batch_norm"
    channels: Size
    maps: StrictBool = True
    eps: Epsilon = 1e-5
    momentum: Share = 0.1
    affine: StrictBool = True


class GroupNorm(Layer):
    kind: Literal["group_norm"] = "group_norm"
    groups: Size
    channels: Size
    eps: Epsilon = 1e-5
    affine: StrictBool = True

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.channels % self.groups:
            raise ValueError(f"{self.groups} groups do not divide {self.channels} channels")
        return self


class LayerNorm(Layer):
    kind: Literal["layer_norm"] = "layer_norm"
    shape: Annotated[tuple[Size, ...], Field(min_length=1, max_length=MAX_DIMENSIONS)]
    eps: Epsilon = 1e-5
    affine: StrictBool = True


class Dropout(Layer):
    kind: Literal["dropout"] = "dropout"
    rate: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
    channels: StrictBool = False  # whole channels at a time


AnyLayer = Conv2d | Linear | BatchNorm | GroupNorm | LayerNorm | Dropout
ActivationName = Literal[
    "relu", "relu6", "silu", "gelu", "gelu_tanh", "hardswish", "hardsigmoid", "sigmoid", "tanh",
    "mish", "softplus",
]  # fmt: skip


class Apply(Part):
    """A layer, by its path; a layer may be applied several times."""

    op: Literal["layer"] = "layer"
    layer: Path
    of: Value


class Activation(Part):
    op: ActivationName
    of: Value


class Slope(Part):
    """Below zero: ``constant`` times the value, or times (e^value - 1)."""

    op: Literal["leaky_relu", "elu"]
    of: Value
    constant: Constant


class MaxPool(Part):
    op: Literal["max_pool2d"] = "max_pool2d"
    of: Value
    kernel: tuple[Small, Small]
    stride: tuple[Small, Small]
    padding: tuple[Border, Border] = (0, 0)
    ceil: StrictBool = False


class AveragePool(Part):
    op: Literal["avg_pool2d"] = "avg_pool2d"
    of: Value
    kernel: tuple[Small, Small]
    stride: tuple[Small, Small]
    padding: tuple[Border, Border] = (0, 0)
    ceil: StrictBool = False
    border_counts: StrictBool = True


class AdaptivePool(Part):
    op: Literal["adaptive_avg_pool2d"] = "adaptive_avg_pool2d"
    of: Value
    size: tuple[Small, Small]


class Pad(Part):
    """Zeros: left, right, top, bottom."""

    op: Literal["pad"] = "pad"
    of: Value
    sides: tuple[Border, Border, Border, Border]


class Combine(Part):
    """Element by element; sizes of one stretch."""

    op: Literal["add", "subtract", "multiply", "divide"]
    of: tuple[Value, Value]


class Affine(Part):
    """factor * value + shift"""

    op: Literal["affine"] = "affine"
    of: Value
    factor: Constant = 1.0
    shift: Constant = 0.0


class Concatenate(Part):
    op: Literal["concatenate"] = "concatenate"
    of: Annotated[tuple[Value, ...], Field(min_length=1, max_length=256)]
    dimension: Dimension


class Slice(Part):
    op: Literal["slice"] = "slice"
    of: Value
    dimension: Dimension
    start: Annotated[StrictInt, Field(ge=0, le=MAX_SIZE)]
    stop: Size
    step: Size = 1


class Flatten(Part):
    """All dimensions from ``start`` on become one."""

    op: Literal["flatten"] = "flatten"
    of: Value
    start: Dimension = 1


class Reshape(Part):
    """Of one image; 0 stands, once at most, for what is left."""

    op: Literal["reshape"] = "reshape"
    of: Value
    shape: Annotated[
        tuple[Annotated[StrictInt, Field(ge=0, le=MAX_SIZE)], ...],
        Field(min_length=1, max_length=MAX_DIMENSIONS),
    ]


class Permute(Part):
    op: Literal["permute"] = "permute"
    of: Value
    dimensions: Annotated[tuple[Dimension, ...], Field(min_length=1, max_length=MAX_DIMENSIONS)]


class Mean(Part):
    op: Literal["mean"] = "mean"
    of: Value
    dimensions: Annotated[tuple[Dimension, ...], Field(min_length=1, max_length=MAX_DIMENSIONS)]
    keep: StrictBool = False


AnyStep = (
    Apply | Activation | Slope | MaxPool | AveragePool | AdaptivePool | Pad | Combine | Affine
    | Concatenate | Slice | Flatten | Reshape | Permute | Mean
)  # fmt: skip


_OneLayer = Annotated[AnyLayer, Field(discriminator="kind")]
_OneStep = Annotated[AnyStep, Field(discriminator="op")]


def sources(step: AnyStep) -> tuple[int, ...]:
    """The values that a step reads."""
    return step.of if isinstance(step.of, tuple) else (step.of,)


class Program(Part):
    """``input``: (channels, height, width) of the example that it was exported with; the result of
    the last step are the scores of the classes. Whether sizes fit is for ``shapes`` to say."""

    format: Literal[1] = 1
    input: tuple[Literal[1, 3], Size, Size]
    layers: Annotated[tuple[_OneLayer, ...], Field(min_length=1, max_length=MAX_LAYERS)]
    steps: Annotated[tuple[_OneStep, ...], Field(min_length=1, max_length=MAX_STEPS)]

    @classmethod
    def parse(cls, text: bytes | str) -> Self:
        """Raises InvalidInput, which names each place at fault, for what is not a program in
        canonical form: what is approved by its hash can be written in one way only."""
        data = text.encode() if isinstance(text, str) else text
        if len(data) > MAX_TEXT_BYTES:
            raise InvalidInput(f"A program has at most {MAX_TEXT_BYTES} bytes, not {len(data)}.")
        try:
            found = cls.model_validate_json(data)
        except ValidationError as error:
            raise InvalidInput(f"This is not a program: {_describe(error)}") from None
        if found.text.encode() != data:
            raise InvalidInput("The program is not in canonical form.")
        return found

    @model_validator(mode="after")
    def _sound(self) -> Self:
        paths = [layer.path for layer in self.layers]
        _check_paths(paths)
        applied = [step.layer for step in self.steps if isinstance(step, Apply)]
        unknown, unused = sorted(set(applied) - set(paths)), sorted(set(paths) - set(applied))
        if unknown or unused:
            raise ValueError(f"layer {(unknown or unused)[0]} is not listed, or not applied")
        for number, step in enumerate(self.steps):
            if max(sources(step)) > number:
                raise ValueError(f"step {number + 1} ({step.op}) reads the result of a later one")
        if len(self.text) > MAX_TEXT_BYTES:
            raise ValueError(f"a program has at most {MAX_TEXT_BYTES} bytes")
        return self

    @cached_property
    def text(self) -> str:
        """Canonical JSON: sorted keys, no spaces, defaults written out."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def operators(self) -> dict[str, int]:
        """How often each layer kind and operator is applied."""
        kinds = {layer.path: layer.kind for layer in self.layers}
        names = (kinds[s.layer] if isinstance(s, Apply) else s.op for s in self.steps)
        return dict(sorted(Counter(names).items()))

    @property
    def mixes_images(self) -> bool:
        """Whether the images of a batch bear on one another, as BatchNorm has them."""
        return any(isinstance(layer, BatchNorm) for layer in self.layers)


def _check_paths(paths: list[str]) -> None:
    known = set(paths)
    if len(known) != len(paths):
        raise ValueError("a layer is listed twice")
    for path in paths:
        parts = path.split(".")
        for length in range(1, len(parts)):
            if ".".join(parts[:length]) in known:
                raise ValueError(f"layer {path} lies within another layer")


def _describe(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    lines = [
        f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg'][:200]}" for each in found[:5]
    ]
    return "; ".join(lines)[:1000]
