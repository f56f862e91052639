"""Strict bytes <-> values: little-endian, bounded, no leftovers (house rule 6).

A ``Reader`` either yields exactly what was asked for or raises ``MalformedMessage``; call
``finish()`` at the end so that trailing bytes are refused. Arrays travel as raw little-endian
bytes behind a header of dtype code (u8), number of dimensions (u8) and dimensions (u32 each).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primia.errors import MalformedMessage

DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<u1"),
    2: np.dtype("<u4"),
    3: np.dtype("<u8"),
    4: np.dtype("<f4"),
    5: np.dtype("<f8"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_DIMENSIONS = 8


class Writer:
    """Builds a message; ``take()`` returns it."""

    def __init__(self) -> None:
        self._parts: list[bytes | memoryview] = []

    def u8(self, value: int) -> Writer:
        return self._pack("<B", value)

    def u16(self, value: int) -> Writer:
        return self._pack("<H", value)

    def u32(self, value: int) -> Writer:
        return self._pack("<I", value)

    def u64(self, value: int) -> Writer:
        return self._pack("<Q", value)

    def _pack(self, form: str, value: int) -> Writer:
        self._parts.append(struct.pack(form, value))
        return self

    def raw(self, data: bytes) -> Writer:
        """Bytes whose length the reader knows."""
        self._parts.append(data)
        return self

    def blob(self, data: bytes) -> Writer:
        """Bytes behind their length (u32)."""
        return self.u32(len(data)).raw(data)

    def text(self, value: str) -> Writer:
        return self.blob(value.encode())

    def array(self, value: NDArray[Any]) -> Writer:
        contiguous = np.ascontiguousarray(value)
        dtype = contiguous.dtype.newbyteorder("<")
        self.u8(_CODES[dtype]).u8(contiguous.ndim)
        for size in contiguous.shape:
            self.u32(size)
        self._parts.append(contiguous.reshape(-1).view(np.uint8).data)
        return self

    def take(self) -> bytes:
        return b"".join(self._parts)


class Reader:
    """Reads a message once, from front to back, without copying arrays."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = memoryview(data).cast("B")
        self._at = 0

    def _take(self, size: int) -> memoryview:
        if size > len(self._data) - self._at:
            raise MalformedMessage(f"The message ends early: {size} more bytes were expected.")
        view = self._data[self._at : self._at + size]
        self._at += size
        return view

    def _unpack(self, form: str, size: int) -> int:
        return int(struct.unpack(form, self._take(size))[0])

    def u8(self) -> int:
        return self._unpack("<B", 1)

    def u16(self) -> int:
        return self._unpack("<H", 2)

    def u32(self) -> int:
        return self._unpack("<I", 4)

    def u64(self) -> int:
        return self._unpack("<Q", 8)

    def raw(self, size: int) -> bytes:
        return bytes(self._take(size))

    def blob(self, limit: int) -> bytes:
        size = self.u32()
        if size > limit:
            raise MalformedMessage(f"A field of {size} bytes is over its limit of {limit}.")
        return self.raw(size)

    def text(self, limit: int) -> str:
        try:
            return self.blob(limit).decode()
        except UnicodeDecodeError as error:
            raise MalformedMessage("A text field is not UTF-8.") from error

    def expect(self, constant: bytes, what: str) -> None:
        if self.raw(len(constant)) != constant:
            raise MalformedMessage(f"This is not {what}: its first bytes are wrong.")

    def array(self, dtype: Any, shape: Sequence[int]) -> NDArray[Any]:
        """An array of exactly this dtype and shape; a view, read-only if the message is."""
        wanted = np.dtype(dtype).newbyteorder("<")
        found = DTYPES.get(self.u8())
        dimensions = self.u8()
        if dimensions > MAX_DIMENSIONS:
            raise MalformedMessage(f"An array of {dimensions} dimensions is not accepted.")
        size = tuple(self.u32() for _ in range(dimensions))
        if found != wanted or size != tuple(shape):
            raise MalformedMessage(
                f"Expected an array of {wanted.name} {tuple(shape)}, found "
                f"{found.name if found else 'an unknown type'} {size}."
            )
        count = int(np.prod(size, dtype=np.int64))
        return np.frombuffer(self._take(count * wanted.itemsize), dtype=wanted).reshape(size)

    def finish(self) -> None:
        left = len(self._data) - self._at
        if left:
            raise MalformedMessage(f"{left} bytes are left over at the end of the message.")
