"""A model's state as one flat float32 vector, in a stated order; nothing here imports torch.

The order: all parameters, then all floating-point buffers (BatchNorm's running means and
variances), each in the order the module names them. Aggregation works on the vector, storage and
download on safetensors with one tensor a name. Integer buffers (``num_batches_tracked``) count
local batches: they are no part of the state.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
from numpy.typing import NDArray

from primia.errors import InvalidInput, PrimiaError

Group = Literal["parameters", "buffers"]
Vector = NDArray[np.float32]

# safetensors keeps a JSON header of some 150 bytes a tensor; its own limit is 100 MB.
MAX_HEADER_BYTES = 1 << 20
_METADATA_KEY = "primia"
_BLOCK = 1 << 18


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

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """What ``to_json`` gave."""
        return cls.of([(name, tuple(shape), group) for name, shape, group in json.loads(text)])

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
    for start in range(0, layout.size, _BLOCK):
        finite = np.isfinite(vector[start : start + _BLOCK])
        if not finite.all():
            name = layout.slot_at(start + int(np.argmin(finite))).name
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
    return b"".join(state_pieces(vector, layout, metadata))


def state_pieces(
    vector: Vector, layout: Layout, metadata: Mapping[str, object] | None = None
) -> Iterator[bytes | memoryview]:
    """The bytes of ``write_state`` for a file, without a copy of the vector: the tensors lie in the
    layout's order, so that behind the header the file is the vector."""
    whole = np.ascontiguousarray(check_vector(vector, layout), dtype="<f4")
    yield _header(layout, metadata or {})
    if layout.size:
        yield whole.data.cast("B")


def _header(layout: Layout, metadata: Mapping[str, object]) -> bytes:
    """Of a safetensors file: its length, and JSON filled up with spaces to eight bytes."""
    text = json.dumps(dict(metadata), sort_keys=True, separators=(",", ":"))
    entries: dict[str, object] = {"__metadata__": {_METADATA_KEY: text}}
    for slot in layout.slots:
        offsets = [4 * slot.offset, 4 * (slot.offset + slot.size)]
        entries[slot.name] = {"dtype": "F32", "shape": slot.shape, "data_offsets": offsets}
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def read_state(data: bytes, layout: Layout, refused: type[PrimiaError] = InvalidState) -> Vector:
    """The vector in safetensors bytes that hold exactly the layout's tensors.

    Raises ``refused``, naming the tensor that is missing, unknown, of another shape or type, or
    not finite. Bytes past the size that the layout can need are refused unread.
    """
    _check_length(len(data), layout, refused)
    found = _tensors(data, refused)

    def values(slot: Slot) -> Vector:
        tensor = found[slot.name]
        _check_tensor(tensor["dtype"], tuple(tensor["shape"]), slot, refused)
        return np.frombuffer(tensor["data"], dtype="<f4")

    return _gathered(found, values, layout, refused)


def read_state_file(
    path: Path, layout: Layout, refused: type[PrimiaError] = InvalidState
) -> Vector:
    """``read_state`` of a file, one tensor after the other: never the whole file in memory."""
    with _state_file(path, layout, refused) as (names, values):
        return _gathered(names, values, layout, refused)


def subtract_state_file(
    vector: Vector, path: Path, layout: Layout, refused: type[PrimiaError] = InvalidState
) -> None:
    """Subtract what ``read_state_file`` gives, in place, one tensor after the other."""
    check_vector(vector, layout, refused)
    with _state_file(path, layout, refused) as (names, values):
        _check_names(names, layout, refused)
        for slot in layout.slots:
            vector[slot.span] -= values(slot)


@contextlib.contextmanager
def _state_file(
    path: Path, layout: Layout, refused: type[PrimiaError]
) -> Iterator[tuple[Collection[str], Callable[[Slot], Vector]]]:
    """The names in a safetensors file, and what gives a slot's values from it."""
    _check_length(path.stat().st_size, layout, refused)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:

            def values(slot: Slot) -> Vector:
                entry = file.get_slice(slot.name)
                _check_tensor(entry.get_dtype(), tuple(entry.get_shape()), slot, refused)
                return np.asarray(file.get_tensor(slot.name), dtype=np.float32).reshape(-1)

            yield file.keys(), values
    except safetensors.SafetensorError as error:
        raise refused(f"The weights are not a safetensors file: {error}.") from None


def _check_length(length: int, layout: Layout, refused: type[PrimiaError]) -> None:
    limit = 4 * layout.size + MAX_HEADER_BYTES
    if length > limit:
        raise refused(f"The weights file has {length} bytes; this model's has at most {limit}.")


def _gathered(
    names: Collection[str],
    values: Callable[[Slot], Vector],
    layout: Layout,
    refused: type[PrimiaError],
) -> Vector:
    _check_names(names, layout, refused)
    vector = np.empty(layout.size, dtype=np.float32)
    for slot in layout.slots:
        vector[slot.span] = values(slot)
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


def _check_names(names: Collection[str], layout: Layout, refused: type[PrimiaError]) -> None:
    found, wanted = set(names), {slot.name for slot in layout.slots}
    missing = [slot.name for slot in layout.slots if slot.name not in found]
    unknown = sorted(found - wanted)
    if missing:
        raise refused(f"Tensor {missing[0]!r} is missing ({len(missing)} of {len(wanted)} are).")
    if unknown:
        raise refused(
            f"Tensor {unknown[0][:200]!r} is not part of this model ({len(unknown)} are not)."
        )


def _check_tensor(
    dtype: str, shape: tuple[int, ...], slot: Slot, refused: type[PrimiaError]
) -> None:
    if dtype != "F32" or shape != slot.shape:
        raise refused(f"Tensor {slot.name!r} is {dtype} {shape}; F32 {slot.shape} is needed.")
