"""A compiled model: the public plan and the model owner's fixed-point weights.

Weights are below 2^16 in magnitude, so that ring products stay exact in float64 limbs; a bias is
a ring element at its layer's output scale (source scale + weight bits). Files are safetensors:
``plan`` (uint8, the plan's canonical JSON), ``<layer>.weight`` and ``<layer>.bias`` (int32).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from primia.errors import MalformedMessage
from primia.mpc.plan import MAX_JSON_BYTES, MAX_WEIGHTS, Plan, Shape
from primia.mpc.weights import LayerWeights

WEIGHT_LIMIT = 1 << 16  # |weight| stays below
# Four bytes a weight, as much again for biases and headers.
MAX_FILE_BYTES = 8 * MAX_WEIGHTS


@dataclass(frozen=True, eq=False, repr=False)
class CompiledModel:
    """The plan and its weights by layer name. Raises MalformedMessage where they do not fit."""

    plan: Plan
    weights: dict[str, LayerWeights]

    def __post_init__(self) -> None:
        wanted = {op.layer: shape for op, shape in self.plan.linear()}
        if set(self.weights) != set(wanted):
            raise MalformedMessage("The compiled model's layers are not its plan's.")
        for layer, shape in wanted.items():
            _check(self.weights[layer].weight, shape, f"{layer}.weight")
            _check(self.weights[layer].bias, shape[:1], f"{layer}.bias")
            if int(np.abs(self.weights[layer].weight.astype(np.int64)).max()) >= WEIGHT_LIMIT:
                raise MalformedMessage(f"{layer}.weight holds a value of 2^16 or more.")

    def __repr__(self) -> str:
        return f"CompiledModel({len(self.weights)} layers, plan {self.plan.digest().hex()[:12]})"

    def to_bytes(self) -> bytes:
        """The model as one safetensors file: the owner's secret."""
        tensors: dict[str, NDArray[Any]] = {"plan": np.frombuffer(self.plan.to_json(), np.uint8)}
        for layer, part in self.weights.items():
            tensors[f"{layer}.weight"] = np.ascontiguousarray(part.weight)
            tensors[f"{layer}.bias"] = np.ascontiguousarray(part.bias)
        return safetensors.numpy.save(tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> CompiledModel:
        """The model in these bytes. Raises MalformedMessage."""
        tensors = _tensors(data)
        plan = Plan.parse(_plan_json(tensors))
        layers = [op.layer for op, _ in plan.linear()]
        names = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
        if set(tensors) != names | {"plan"}:
            raise MalformedMessage("The compiled model's tensors are not those of its plan.")
        weights = {
            layer: LayerWeights(tensors[f"{layer}.weight"], tensors[f"{layer}.bias"])
            for layer in layers
        }
        return cls(plan, weights)


def _tensors(data: bytes) -> dict[str, NDArray[Any]]:
    if len(data) > MAX_FILE_BYTES:
        raise MalformedMessage(f"A compiled model of {len(data)} bytes is over the limit.")
    try:
        return safetensors.numpy.load(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise MalformedMessage("The compiled model is not a safetensors file.") from error


def _plan_json(tensors: dict[str, NDArray[Any]]) -> bytes:
    plan = tensors.get("plan")
    if plan is None or plan.dtype != np.uint8 or plan.ndim != 1 or plan.size > MAX_JSON_BYTES:
        raise MalformedMessage("The compiled model holds no plan.")
    return plan.tobytes()


def _check(array: NDArray[Any], shape: Shape, name: str) -> None:
    if array.dtype != np.int32 or array.shape != shape:
        raise MalformedMessage(f"{name} is {array.dtype} {array.shape}, not int32 {shape}.")
