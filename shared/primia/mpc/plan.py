"""The plan: a model compiled to gates, its public description, and its bill of materials.

A plan is what all three parties know: shapes, scales and gates, no weight. It is a list of
operations in single-assignment form (value 0 is the image, operation i yields value i + 1), so it
evaluates from front to back. Parsing is strict and every size is bounded: ``MalformedMessage`` says
what is wrong. Weights live elsewhere (``primia.mpc.compiled``), keyed by layer name.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import Field, dataclass, fields
from functools import cached_property
from typing import Any, get_args, get_type_hints

from primia.errors import MalformedMessage
from primia.mpc.gate_shape import RING_BITS, Gate, tournament
from primia.mpc.operations import (
    OPERATIONS,
    Add,
    Convolution,
    Dense,
    Flatten,
    Linear,
    MaxPool,
    Narrow,
    Operation,
    Pair,
    Relu,
    Shape,
    SumPool,
)

__all__ = [
    "RING_BITS",
    "Add",
    "Bill",
    "Convolution",
    "Dense",
    "Flatten",
    "Gate",
    "Linear",
    "MaxPool",
    "Narrow",
    "Operation",
    "Pair",
    "Plan",
    "Relu",
    "Shape",
    "SumPool",
]

VERSION = 3
RESULTS = ("scores", "label")
# Bounds on what a peer may ask of us: several times a ResNet-152 at 224 x 224.
MAX_JSON_BYTES = 1 << 20
MAX_OPERATIONS = 2048
MAX_LAYER_NAME = 128
MAX_NUMBER = 1 << 20  # any single integer field
MAX_VALUES = 1 << 24  # elements of one value of one image
MAX_SIDE = 1 << 12  # height or width of an image or feature map
MAX_WEIGHTS = 1 << 27  # elements of all weights
MAX_COMPARISONS = 1 << 28  # of one image
MAX_CLASSES = 1 << 16
# Scales above this leave no room for the value itself.
MAX_SCALE = RING_BITS - 2

_LAYER = re.compile(r"[A-Za-z0-9_.\-/]+")
_TOP = ("version", "input_shape", "activation_bits", "ring_bits", "ops", "result")


@dataclass(frozen=True)
class Bill:
    """What ``batch`` images cost: comparisons, dealt key bytes (common to both halves), and the
    payload bytes between the parties, frames not counted."""

    batch: int
    comparisons: int
    key_bytes: int
    offline_bytes: int
    request_bytes: int
    response_bytes: int
    requests: int


@dataclass(frozen=True)
class Plan:
    """``activation_bits`` f: fraction bits of the image; ``result``: "scores" or "label"."""

    input_shape: Shape
    activation_bits: int
    ops: tuple[Operation, ...]
    result: str = "scores"
    version: int = VERSION
    ring_bits: int = RING_BITS

    def __post_init__(self) -> None:
        _check_top(self)
        _check_operations(self)
        _check_result(self)

    def shapes(self) -> tuple[Shape, ...]:
        """The shape of every value, without the batch dimension."""
        return self._shapes

    @cached_property
    def _shapes(self) -> tuple[Shape, ...]:
        shapes: list[Shape] = [self.input_shape]
        for op in self.ops:
            shapes.append(op.shape(*(shapes[source] for source in op.sources)))
        return tuple(shapes)

    def scales(self) -> tuple[int, ...]:
        """The fraction bits of every value."""
        scales = [self.activation_bits]
        for op in self.ops:
            scales.append(op.scale(*(scales[source] for source in op.sources)))
        return tuple(scales)

    def widths(self) -> tuple[int, ...]:
        """The n of every value's ring Z_2^n."""
        return self._widths

    @cached_property
    def _widths(self) -> tuple[int, ...]:
        widths = [RING_BITS]
        for op in self.ops:
            widths.append(op.width(*(widths[source] for source in op.sources)))
        return tuple(widths)

    @property
    def classes(self) -> int:
        return self.shapes()[-1][0]

    def linear(self) -> tuple[tuple[Linear, Shape], ...]:
        """The layers with weights, each with the shape of its weight."""
        shapes = self.shapes()
        return tuple(
            (op, op.weight_shape(shapes[op.source]))
            for op in self.ops
            if isinstance(op, Convolution | Dense)
        )

    def gates(self) -> tuple[Gate, ...]:
        """Every nonlinear step in order, the tournament of ``label`` included."""
        return self._gates

    @cached_property
    def _gates(self) -> tuple[Gate, ...]:
        shapes, widths = self.shapes(), self.widths()
        found = [
            gate
            for op in self.ops
            if isinstance(op, Relu | MaxPool)
            for gate in op.gates(shapes[op.source], widths[op.source])
        ]
        if self.result == "label":
            found += tournament("label", shapes[-1][0])
        return tuple(found)

    @property
    def requests(self) -> int:
        """Online exchanges of one session: one a gate, and one for the result."""
        return len(self.gates()) + 1

    def bill(self, batch: int = 1) -> Bill:
        gates = self.gates()
        shapes = self.shapes()
        result = 1 if self.result == "label" else shapes[-1][0]
        return Bill(
            batch=batch,
            comparisons=batch * sum(gate.comparisons for gate in gates),
            key_bytes=sum(gate.key_bytes(batch) for gate in gates),
            offline_bytes=sum(gate.offline_bytes(batch) for gate in gates),
            request_bytes=4 * batch * math.prod(self.input_shape)
            + sum(gate.request_bytes(batch) for gate in gates),
            response_bytes=4 * batch * result + sum(gate.response_bytes(batch) for gate in gates),
            requests=len(gates) + 1,
        )

    def to_json(self) -> bytes:
        """Canonical: sorted keys, no spaces, so equal plans have equal bytes."""
        document = {
            "version": self.version,
            "input_shape": self.input_shape,
            "activation_bits": self.activation_bits,
            "ring_bits": self.ring_bits,
            "ops": [_to_dict(op) for op in self.ops],
            "result": self.result,
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON, 32 bytes."""
        return self._digest

    @cached_property
    def _digest(self) -> bytes:
        return hashlib.sha256(self.to_json()).digest()

    @classmethod
    def parse(cls, data: bytes) -> Plan:
        """The plan in these bytes, or ``MalformedMessage``."""
        if len(data) > MAX_JSON_BYTES:
            raise MalformedMessage(f"A plan of {len(data)} bytes is over the limit.")
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise MalformedMessage("The plan is not JSON.") from error
        _check_keys(document, _TOP, "The plan")
        if not isinstance(document["ops"], list) or len(document["ops"]) > MAX_OPERATIONS:
            raise MalformedMessage("The plan's ops are not a list, or too many.")
        shape = document["input_shape"]
        if not isinstance(shape, list):
            raise MalformedMessage("The plan's input_shape is not a list.")
        return cls(
            input_shape=tuple(_integer(size, "input_shape") for size in shape),
            activation_bits=_integer(document["activation_bits"], "activation_bits"),
            ops=tuple(_from_dict(item) for item in document["ops"]),
            result=_text(document["result"], "result"),
            version=_integer(document["version"], "version"),
            ring_bits=_integer(document["ring_bits"], "ring_bits"),
        )


def _check_top(plan: Plan) -> None:
    if plan.version != VERSION or plan.ring_bits != RING_BITS:
        raise MalformedMessage(f"Only plans of version {VERSION} in {RING_BITS} bits are known.")
    if plan.result not in RESULTS:
        raise MalformedMessage(f"The plan's result is none of {', '.join(RESULTS)}.")
    if len(plan.input_shape) != 3 or min(plan.input_shape) < 1:
        raise MalformedMessage("The plan's input_shape is not channels, height, width.")
    if not 1 <= plan.activation_bits <= MAX_SCALE:
        raise MalformedMessage(f"The plan's activation_bits are not between 1 and {MAX_SCALE}.")
    if not 1 <= len(plan.ops) <= MAX_OPERATIONS:
        raise MalformedMessage(f"A plan has 1 to {MAX_OPERATIONS} operations.")


def _check_operations(plan: Plan) -> None:
    """Sizes, scales, names, references, and that each linear layer's mask is the dealer's to know.

    P1's share of a value is *dealt* if it follows from P1's seed alone. The share of a linear
    layer's result also depends on E, which the dealer must not see: no linear layer may read it.
    """
    shapes, scales, dealt = [plan.input_shape], [plan.activation_bits], [True]
    widths = [RING_BITS]
    names, weights, comparisons = set[str](), 0, 0
    _check_size(plan.input_shape, "The image")
    for op in plan.ops:
        name = _check_name(op, names)
        if not all(0 <= source < len(shapes) for source in op.sources):
            raise MalformedMessage(f"{name} refers to a value that does not exist before it.")
        linear = isinstance(op, Convolution | Dense)
        _check_numbers(op, name)
        inputs = [shapes[source] for source in op.sources]
        try:
            shapes.append(op.shape(*inputs))
            scales.append(op.scale(*(scales[source] for source in op.sources)))
            widths.append(op.width(*(widths[source] for source in op.sources)))
            _check_size(shapes[-1], name)
            if isinstance(op, Relu | MaxPool):
                gates = op.gates(inputs[0], widths[op.source])
                comparisons += sum(gate.comparisons for gate in gates)
        except ValueError as error:
            raise MalformedMessage(f"{name} does not fit: {error}.") from error
        if not 0 <= scales[-1] <= MAX_SCALE:
            raise MalformedMessage(f"{name} yields {scales[-1]} fraction bits: out of range.")
        if isinstance(op, Convolution | Dense):
            weights += math.prod(op.weight_shape(inputs[0]))
        known = all(dealt[source] for source in op.sources)
        if linear and not known:
            raise MalformedMessage(f"{name} reads a linear layer without a ReLU between them.")
        gated = isinstance(op, Relu) or (isinstance(op, MaxPool) and op.relu)
        dealt.append(gated or (known and not linear))
        if weights > MAX_WEIGHTS or comparisons > MAX_COMPARISONS:
            raise MalformedMessage(f"With {name} the plan is over the limits.")


def _check_result(plan: Plan) -> None:
    shape = plan.shapes()[-1]
    if len(shape) != 1 or not 1 <= shape[0] <= MAX_CLASSES:
        raise MalformedMessage(f"The plan ends in {shape}, not in a vector of scores.")
    if plan.widths()[-1] != RING_BITS:
        raise MalformedMessage("The plan ends in a narrow value.")
    if plan.result == "label" and shape[0] < 2:
        raise MalformedMessage("A label needs two classes or more.")


def _check_name(op: Operation, names: set[str]) -> str:
    if len(op.layer) > MAX_LAYER_NAME or not _LAYER.fullmatch(op.layer):
        raise MalformedMessage("An operation's layer name is empty, too long or not plain.")
    if op.layer in names:
        raise MalformedMessage(f"Two operations are named {op.layer}.")
    names.add(op.layer)
    return f"Layer {op.layer}"


def _check_numbers(op: Operation, name: str) -> None:
    for field in fields(op):
        value = getattr(op, field.name)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(n, int) and not 0 <= n <= MAX_NUMBER for n in numbers):
            raise MalformedMessage(f"{name}: its {field.name} is out of range.")
    for field_name in ("left_shift", "right_shift", "weight_bits"):
        if getattr(op, field_name, 0) > MAX_SCALE:
            raise MalformedMessage(f"{name}: its {field_name} is out of range.")
    if getattr(op, "out_channels", 1) < 1 or getattr(op, "out_features", 1) < 1:
        raise MalformedMessage(f"{name} has no outputs.")


def _check_size(shape: Shape, name: str) -> None:
    sides = shape[1:]
    if math.prod(shape) > MAX_VALUES or min(shape) < 1 or max(sides, default=0) > MAX_SIDE:
        raise MalformedMessage(f"{name} has a value of {shape}: out of range.")


def _to_dict(op: Operation) -> dict[str, Any]:
    named = [each for each in fields(op) if each.name in _required(op) or _differs(op, each)]
    return {"op": op.kind, **{each.name: getattr(op, each.name) for each in named}}


def _required(operation: Operation | type[Operation]) -> tuple[str, ...]:
    return tuple(each.name for each in fields(operation) if not each.metadata.get("optional"))


def _differs(op: Operation, optional: Field[Any]) -> bool:
    return bool(getattr(op, optional.name) != optional.default)


def _from_dict(item: object) -> Operation:
    kinds = {operation.kind: operation for operation in OPERATIONS}
    kind = item.get("op") if isinstance(item, dict) else None
    operation = kinds.get(kind) if isinstance(kind, str) else None
    if operation is None or not isinstance(item, dict):
        raise MalformedMessage("The plan has an operation of an unknown kind.")
    optional = {each.name for each in fields(operation)} - set(_required(operation))
    given = tuple(name for name in item if name in optional)
    names = (*_required(operation), *given)
    _check_keys(item, ("op", *names), f"A {kind}")
    hints = get_type_hints(operation)
    values: dict[str, Any] = {name: _field(item[name], hints[name], name) for name in names}
    found: Operation = operation(**values)
    if not all(_differs(found, each) for each in fields(found) if each.name in given):
        raise MalformedMessage(f"A {kind} names a field that it leaves as it is.")
    return found


def _field(value: object, hint: Any, name: str) -> str | int | bool | Pair:
    if hint is str:
        return _text(value, name)
    if hint is int:
        return _integer(value, name)
    if hint is bool:
        return _flag(value, name)
    if not isinstance(value, list) or len(value) != len(get_args(hint)):
        raise MalformedMessage(f"The plan's {name} is not a pair of integers.")
    return _integer(value[0], name), _integer(value[1], name)


def _check_keys(document: object, keys: tuple[str, ...], what: str) -> None:
    if not isinstance(document, dict) or set(document) != set(keys):
        raise MalformedMessage(f"{what} does not have exactly the fields {', '.join(keys)}.")


def _integer(value: object, name: str) -> int:
    if type(value) is not int or abs(value) > MAX_NUMBER:
        raise MalformedMessage(f"The plan's {name} is not an integer in range.")
    return value


def _flag(value: object, name: str) -> bool:
    if type(value) is not bool:
        raise MalformedMessage(f"The plan's {name} is neither true nor false.")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise MalformedMessage(f"The plan's {name} is not a text.")
    return value
