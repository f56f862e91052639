"""A model's state as one flat float32 vector, in a stated order; nothing here imports torch.

The order: all parameters, then all floating-point buffers (BatchNorm's running means and
variances), each in the order the module names them. Aggregation works on the vector, storage and
download on safetensors with one tensor a name. Integer buffers (``num_batches_tracked``) count
local batches: they are no part of the state.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save

from primia.errors import InvalidInput, PrimiaError

Group = Literal["parameters", "buffers"]
Vector = NDArray[np.float32]

# safetensors keeps a JSON header of some 150 bytes a tensor; its own limit is 100 MB.
MAX_HEADER_BYTES = 1 << 20
_METADATA_KEY = "primia"


class InvalidState(InvalidInput):
    """Weights that do not fit the model; the detail names the tensor."""

    code = "invalid-model-state"
    title = "Model state refused"


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a tensor lies in the vector."""

    name: str
    shape: tuple[int, ...]
    group: Group
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def span(self) -> slice:
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True)
class Layout:
    """The stated order of a model's state."""

    slots: tuple[Slot, ...]

    @classmethod
    def of(cls, tensors: list[tuple[str, tuple[int, ...], Group]]) -> Layout:
        """Tensors one behind the other, in the order given."""
        slots: list[Slot] = []
        offset = 0
        for name, shape, group in tensors:
            slots.append(Slot(name, tuple(shape), group, offset))
            offset += slots[-1].size
        return cls(tuple(slots))

    @cached_property
    def size(self) -> int:
        """Length of the vector."""
        return sum(slot.size for slot in self.slots)

    def group_size(self, group: Group) -> int:
        return sum(slot.size for slot in self.slots if slot.group == group)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the order: equal digests mean that vectors may be added."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        rows = [[slot.name, list(slot.shape), slot.group] for slot in self.slots]
        return json.dumps(rows, separators=(",", ":"))

    def slot_at(self, index: int) -> Slot:
        return next(slot for slot in self.slots if index < slot.offset + slot.size)


def check_vector(
    vector: NDArray[Any], layout: Layout, refused: type[PrimiaError] = InvalidState
) -> Vector:
    """The vector, if it is float32 of shape (layout.size,) and finite; else ``refused``."""
    if vector.dtype != np.float32 or vector.shape != (layout.size,):
        raise refused(
            f"The model's state is a float32 vector of {layout.size} elements, "
            f"not {vector.dtype} {vector.shape}."
        )
    finite = np.isfinite(vector)
    if not finite.all():
        name = layout.slot_at(int(np.argmin(finite))).name
        raise refused(f"Tensor {name!r} holds values that are not finite (NaN or infinity).")
    return vector


def state_digest(vector: Vector, layout: Layout) -> str:
    """SHA-256 (hex) over the layout and the vector's little-endian bytes."""
    digest = hashlib.sha256(bytes.fromhex(layout.digest))
    digest.update(np.ascontiguousarray(vector, dtype="<f4").data)
    return digest.hexdigest()


def write_state(
    vector: Vector, layout: Layout, metadata: Mapping[str, object] | None = None
) -> bytes:
    """safetensors bytes, the same for the same input; ``metadata`` is kept as one JSON text
    (safetensors does not keep the order of several)."""
    whole = np.ascontiguousarray(check_vector(vector, layout))
    tensors = {slot.name: whole[slot.span].reshape(slot.shape) for slot in layout.slots}
    text = json.dumps(dict(metadata or {}), sort_keys=True, separators=(",", ":"))
    return save(tensors, metadata={_METADATA_KEY: text})


def read_state(data: bytes, layout: Layout, refused: type[PrimiaError] = InvalidState) -> Vector:
    """The vector in safetensors bytes that hold exactly the layout's tensors.

    Raises ``refused``, naming the tensor that is missing, unknown, of another shape or type, or
    not finite. Bytes past the size that the layout can need are refused unread.
    """
    limit = 4 * layout.size + MAX_HEADER_BYTES
    if len(data) > limit:
        raise refused(f"The weights file has {len(data)} bytes; this model's has at most {limit}.")
    found = _tensors(data, refused)
    _check_names(found, layout, refused)
    vector = np.empty(layout.size, dtype=np.float32)
    for slot in layout.slots:
        vector[slot.span] = _values(found[slot.name], slot, refused)
    return check_vector(vector, layout, refused)


def read_metadata(data: bytes) -> dict[str, object]:
    """What ``write_state`` was given as metadata; empty for files that others wrote."""
    length = int.from_bytes(data[:8], "little")
    if length > min(MAX_HEADER_BYTES, len(data) - 8):
        return {}
    try:
        header = json.loads(data[8 : 8 + length])
        value = json.loads(header["__metadata__"][_METADATA_KEY])
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _tensors(data: bytes, refused: type[PrimiaError]) -> dict[str, dict[str, Any]]:
    try:
        return dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise refused(f"The weights are not a safetensors file: {error}.") from None


def _check_names(
    found: dict[str, dict[str, Any]], layout: Layout, refused: type[PrimiaError]
) -> None:
    wanted = {slot.name for slot in layout.slots}
    missing = [slot.name for slot in layout.slots if slot.name not in found]
    unknown = sorted(found.keys() - wanted)
    if missing:
        raise refused(f"Tensor {missing[0]!r} is missing ({len(missing)} of {len(wanted)} are).")
    if unknown:
        raise refused(
            f"Tensor {unknown[0][:200]!r} is not part of this model ({len(unknown)} are not)."
        )


def _values(tensor: dict[str, Any], slot: Slot, refused: type[PrimiaError]) -> Vector:
    shape = tuple(tensor["shape"])
    if tensor["dtype"] != "F32" or shape != slot.shape:
        raise refused(
            f"Tensor {slot.name!r} is {tensor['dtype']} {shape}; F32 {slot.shape} is needed."
        )
    return np.frombuffer(tensor["data"], dtype="<f4")
