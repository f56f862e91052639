"""The update on the wire: a header of 36 bytes, then 4 little-endian bytes a value (8 of integers).

    magic "PGU1" | kind u8 | reserved u8 = 0 | integers u16 | run 16 | round u32 | count u64

A masked update may carry exact integers masked in Z_2^64, 8 bytes each, before its values.

An API reads the header from the first bytes of a body, compares it with what it waits for, and
streams the payload to disk or into a sum without holding it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from primia.aggregation.terms import MAX_VALUES, RoundId
from primia.codec import Reader, Writer
from primia.errors import MalformedMessage, UnexpectedMessage

HEADER_BYTES = 36
_MAGIC = b"PGU1"
_CHUNK = 1 << 18


class Kind(IntEnum):
    """``MASKED``: uint32, an update in Z_2^32; ``PLAIN``: float32; ``INTEGERS``: uint64, exact
    integers masked in Z_2^64."""

    MASKED = 1
    PLAIN = 2
    INTEGERS = 3

    @property
    def dtype(self) -> str:
        return _DTYPES[self]

    @property
    def value_bytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize)


_DTYPES = {Kind.MASKED: "<u4", Kind.PLAIN: "<f4", Kind.INTEGERS: "<u8"}


class Readable(Protocol):
    """A binary file, positioned behind the header."""

    def readinto(self, buffer: memoryview, /) -> int | None: ...


Payload = bytes | bytearray | memoryview | NDArray[Any] | Readable


@dataclass(frozen=True, slots=True)
class Header:
    """What a frame carries: ``count`` values of the kind's type, behind so many integers."""

    kind: Kind
    round_id: RoundId
    count: int
    integers: int = 0

    @property
    def integer_bytes(self) -> int:
        return Kind.INTEGERS.value_bytes * self.integers

    @property
    def payload_bytes(self) -> int:
        return self.integer_bytes + self.kind.value_bytes * self.count

    @property
    def frame_bytes(self) -> int:
        return HEADER_BYTES + self.payload_bytes

    def to_bytes(self) -> bytes:
        writer = Writer().raw(_MAGIC).u8(self.kind).u8(0).u16(self.integers)
        return self.round_id.write(writer).u64(self.count).take()

    @classmethod
    def parse(cls, data: bytes | memoryview) -> Header:
        """Of exactly HEADER_BYTES; raises ``MalformedMessage``."""
        reader = Reader(data)
        reader.expect(_MAGIC, "an update of a training round")
        kind = reader.u8()
        if kind not in list(Kind):
            raise MalformedMessage(f"An update of kind {kind} is not known.")
        reader.expect(bytes(1), "an update of this version")
        integers = reader.u16()
        header = cls(Kind(kind), RoundId.read(reader), reader.u64(), integers)
        reader.finish()
        if not 1 <= header.count <= MAX_VALUES:
            raise MalformedMessage(f"An update of {header.count} values is not accepted.")
        if header.integers and header.kind is not Kind.MASKED:
            raise MalformedMessage("Only a masked update carries integers beside its values.")
        return header

    def check(self, expected: Header) -> None:
        """Raises ``UnexpectedMessage`` that names the first field that differs."""
        pairs = (
            ("kind", self.kind.name.lower(), expected.kind.name.lower()),
            ("run", self.round_id.run.hex(), expected.round_id.run.hex()),
            ("round", self.round_id.number, expected.round_id.number),
            ("number of values", self.count, expected.count),
            ("number of integers", self.integers, expected.integers),
        )
        for name, found, wanted in pairs:
            if found != wanted:
                raise UnexpectedMessage(f"The update's {name} is {found}; {wanted} is expected.")


def read_header(data: bytes | memoryview, expected: Header) -> Header:
    """Parse the first HEADER_BYTES of a body and compare them with what is expected."""
    if len(data) < HEADER_BYTES:
        raise MalformedMessage(f"An update begins with {HEADER_BYTES} bytes; {len(data)} came.")
    header = Header.parse(data[:HEADER_BYTES])
    header.check(expected)
    return header


def frame(
    header: Header, vector: NDArray[Any], integers: NDArray[np.uint64] | None = None
) -> Iterator[bytes]:
    """The frame in pieces of at most 2 MiB, for a streaming upload."""
    if vector.shape != (header.count,) or vector.dtype != np.dtype(header.kind.dtype):
        raise ValueError(f"{vector.dtype} {vector.shape} is not what the header announces")
    if (0 if integers is None else len(integers)) != header.integers:
        raise ValueError(f"the header announces {header.integers} integers")
    yield header.to_bytes()
    if integers is not None:
        yield integers.astype("<u8").tobytes()
    for start in range(0, header.count, _CHUNK):
        yield vector[start : start + _CHUNK].tobytes()


def parse_frame(data: bytes | memoryview, expected: Header) -> NDArray[Any]:
    """The vector of a whole frame in memory, without a copy and without its integers."""
    header = read_header(data, expected)
    payload = memoryview(data)[HEADER_BYTES:]
    _check_size(len(payload), header.payload_bytes)
    return np.frombuffer(payload[header.integer_bytes :], dtype=header.kind.dtype)


def read_integers(file: BinaryIO, count: int) -> NDArray[np.uint64]:
    """The integers of a frame, of a file positioned behind the header; then it is at the values.

    Raises ``MalformedMessage`` where it ends early.
    """
    data = file.read(Kind.INTEGERS.value_bytes * count)
    _check_size(len(data), Kind.INTEGERS.value_bytes * count)
    return np.frombuffer(data, dtype=Kind.INTEGERS.dtype)


def chunks(payload: Payload, count: int, dtype: str) -> Iterator[tuple[slice, NDArray[Any]]]:
    """A payload of exactly ``count`` values in pieces of 1 or 2 MiB: (where, values).

    Files are read into one buffer, which the next piece overwrites. Raises ``MalformedMessage`` for
    another length; of a buffer before the first piece, of a file only at its end.
    """
    size = np.dtype(dtype).itemsize
    if isinstance(payload, (bytes, bytearray, memoryview, np.ndarray)):
        view = _view(payload)
        _check_size(len(view), size * count)
        values = np.frombuffer(view, dtype=dtype)
        for start in range(0, count, _CHUNK):
            part = slice(start, min(start + _CHUNK, count))
            yield part, values[part]
        return
    buffer = np.empty(min(_CHUNK, count), dtype=dtype)
    raw = buffer.view(np.uint8).data
    for start in range(0, count, _CHUNK):
        part = slice(start, min(start + _CHUNK, count))
        length = part.stop - part.start
        _read_fully(payload, raw[: size * length])
        yield part, buffer[:length]
    if payload.readinto(memoryview(bytearray(1))):
        raise MalformedMessage("The update has bytes left over behind its last value.")


def side_by_side(
    count: int, payloads: Sequence[Payload], dtype: str, before: Payload | None, sum_dtype: str
) -> Iterator[tuple[slice, NDArray[Any], list[NDArray[Any]]]]:
    """Payloads of ``count`` values each, read together: (where, sum so far, a piece of each).

    The sum so far is the piece of ``before``, of ``sum_dtype``, or zeros: to be added to in place.
    All are overwritten by the next pieces. Raises ``MalformedMessage`` for another length.
    """
    rows = [chunks(payload, count, dtype) for payload in payloads]
    sums = None if before is None else chunks(before, count, sum_dtype)
    space = np.empty(min(_CHUNK, count), dtype=sum_dtype)
    for start in range(0, count, _CHUNK):
        part = slice(start, min(start + _CHUNK, count))
        total = space[: part.stop - part.start]
        total[:] = 0 if sums is None else next(sums)[1]
        yield part, total, [next(row)[1] for row in rows]
    for row in (*rows, *([sums] if sums else [])):
        next(row, None)  # looks for bytes that are left over


def _view(payload: bytes | bytearray | memoryview | NDArray[Any]) -> memoryview:
    if isinstance(payload, np.ndarray):
        payload = np.ascontiguousarray(payload).data
    return memoryview(payload).cast("B")


def _read_fully(file: Readable, view: memoryview) -> None:
    while view:
        read = file.readinto(view)
        if not read:
            raise MalformedMessage(f"The update ends early: {len(view)} more bytes were expected.")
        view = view[read:]


def _check_size(found: int, wanted: int) -> None:
    if found != wanted:
        raise MalformedMessage(f"The update's payload has {found} bytes; {wanted} are expected.")
