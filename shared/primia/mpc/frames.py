"""The messages between P0 and P1 of one session: a header and a payload of a size known beforehand.

    offline    P1 -> P0   plan digest, deal, then delta = y1 + r1 of every gate's opened values
    accepted   P0 -> P1   nothing
    request 0  P1 -> P0   the masked image x - B
    response n P0 -> P1   gate n: y + r of every opened value, then the bits d
    request n  P1 -> P0   gate n - 1: m of every payload, then the bits e
    response   P0 -> P1   (the last) P0's share of the result

Ring elements are little-endian; those of a gate take the bits of its ring (``planes``). Bits are
packed eight to a byte, the unused ones zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from primia.codec import Reader, Writer
from primia.errors import InvalidInput, MalformedMessage, UnexpectedMessage
from primia.fss.geometry import packed_bytes
from primia.fss.kernel import Bits
from primia.mpc.gate_shape import RING_BITS, Gate, plane_bytes
from primia.mpc.plan import Plan
from primia.ring import Ring

MAGIC = b"PGIF"
VERSION = 3
ID_BYTES = 16
HEADER_BYTES = 4 + 2 + 2 + ID_BYTES + 4 + 8
# In the offline payload before the masked shares: the plan's digest and the deal's identifier.
BINDING_BYTES = 32 + ID_BYTES


# The step in the header of the offline frame and of its answer.
OFFLINE_STEP = 0


class Kind(IntEnum):
    OFFLINE = 1
    ACCEPTED = 2
    REQUEST = 3
    RESPONSE = 4


def frame(kind: Kind, session_id: bytes, step: int, parts: Sequence[bytes]) -> bytes:
    size = sum(len(part) for part in parts)
    writer = Writer().raw(MAGIC).u16(VERSION).u16(kind).raw(session_id).u32(step).u64(size)
    for part in parts:
        writer.raw(part)
    return writer.take()


def payload(data: bytes, kind: Kind, session_id: bytes, step: int, size: int) -> memoryview:
    """The payload of exactly this frame; a frame of another step is ``UnexpectedMessage``."""
    reader = Reader(data[:HEADER_BYTES])
    reader.expect(MAGIC, "an inference frame")
    if reader.u16() != VERSION:
        raise MalformedMessage(f"Only inference frames of version {VERSION} are known.")
    if reader.u16() != kind:
        raise MalformedMessage(f"The frame is not of the kind {kind.name.lower()}.")
    if reader.raw(ID_BYTES) != session_id:
        raise UnexpectedMessage("The frame belongs to another session.")
    found = reader.u32()
    if found != step:
        raise UnexpectedMessage(f"The frame is of step {found}; step {step} was expected.")
    if reader.u64() != size or len(data) != HEADER_BYTES + size:
        raise MalformedMessage(f"The payload of step {step} does not have its {size} bytes.")
    return memoryview(data)[HEADER_BYTES:]


def check_id(identifier: bytes, what: str) -> None:
    if len(identifier) != ID_BYTES:
        raise InvalidInput(f"The {what} identifier has {len(identifier)} bytes, not {ID_BYTES}.")


def offline_payload(plan: Plan, batch: int) -> int:
    return BINDING_BYTES + sum(gate.offline_bytes(batch) for gate in plan.gates())


def request_payload(plan: Plan, batch: int, number: int) -> int:
    if number == 0:
        return 4 * batch * math.prod(plan.input_shape)
    return plan.gates()[number - 1].request_bytes(batch)


def response_payload(plan: Plan, batch: int, number: int) -> int:
    gates = plan.gates()
    if number < len(gates):
        return gates[number].response_bytes(batch)
    return 4 * batch * (1 if plan.result == "label" else plan.classes)


def offline_size(plan: Plan, batch: int) -> int:
    """Exact bytes of the offline frame."""
    return HEADER_BYTES + offline_payload(plan, batch)


def request_size(plan: Plan, batch: int, number: int) -> int:
    """Exact bytes of request ``number``, 0 to ``plan.requests`` - 1."""
    return HEADER_BYTES + request_payload(plan, batch, number)


def response_size(plan: Plan, batch: int, number: int) -> int:
    """Exact bytes of the response to request ``number``."""
    return HEADER_BYTES + response_payload(plan, batch, number)


@dataclass(frozen=True, eq=False, repr=False)
class Masked:
    """A gate's response: ``values`` y + r, (lanes, count); ``bits`` d, (comparisons, count)."""

    values: Ring
    bits: Bits

    def write(self, gate: Gate) -> bytes:
        return _write(self.values, gate.width, self.bits)

    @classmethod
    def parse(cls, data: memoryview, gate: Gate, count: int) -> Masked:
        return cls(*_parse(data, gate.lanes, gate.width, gate.bits, count))


@dataclass(frozen=True, eq=False, repr=False)
class Answer:
    """A gate's request: ``values`` m, (payloads, count); ``bits`` e, (comparisons, count)."""

    values: Ring
    bits: Bits

    def write(self, gate: Gate) -> bytes:
        return _write(self.values, gate.result_width, self.bits)

    @classmethod
    def parse(cls, data: memoryview, gate: Gate, count: int) -> Answer:
        return cls(*_parse(data, gate.payloads, gate.result_width, gate.bits, count))


def _write(values: Ring, width: int, bits: Bits) -> bytes:
    return b"".join([*(planes(lane, width) for lane in values), *map(pack, bits)])


def _parse(data: memoryview, lanes: int, width: int, bits: int, count: int) -> tuple[Ring, Bits]:
    split, size = lanes * plane_bytes(count, width), packed_bytes(count)
    values = many_from_planes(data[:split], lanes, count, width)
    parts = [data[split + i * size : split + (i + 1) * size] for i in range(bits)]
    return values, np.stack([unpack(part, count) for part in parts])


def words_to_bytes(values: Ring) -> bytes:
    return values.astype("<u4", copy=False).tobytes()


def planes(values: Ring, width: int) -> bytes:
    """(count,) numbers mod 2^width: their whole low bytes, then a plane of bits for each other."""
    whole = width // 8
    lanes = np.ascontiguousarray(values, dtype="<u4").view(np.uint8).reshape(-1, 4)[:, :whole]
    low = values.astype("<u2") if whole == 2 else lanes  # the cast is the faster of the two
    parts = [low.tobytes()]
    for bit in range(8 * whole, width):
        parts.append(pack(((values >> np.uint32(bit)) & np.uint32(1)).astype(np.uint8)))
    return b"".join(parts)


def from_planes(data: memoryview, count: int, width: int) -> Ring:
    """What ``planes`` wrote; (count,), below 2^width. Unused bits must be zero."""
    whole = width // 8
    if whole == RING_BITS // 8:
        return np.frombuffer(data, dtype="<u4")
    split, size = whole * count, packed_bytes(count)
    values = _low_bytes(data[:split], count, whole)
    for number, bit in enumerate(range(8 * whole, width)):
        start = split + number * size
        values |= unpack(data[start : start + size], count).astype(np.uint32) << np.uint32(bit)
    return values


def many_from_planes(data: memoryview, lanes: int, count: int, width: int) -> Ring:
    """(lanes, count) numbers, one lane behind the other."""
    size = plane_bytes(count, width)
    return np.stack(
        [from_planes(data[i * size : (i + 1) * size], count, width) for i in range(lanes)]
    )


def _low_bytes(data: memoryview, count: int, whole: int) -> Ring:
    if whole == 2:
        return np.frombuffer(data, dtype="<u2").astype(np.uint32)
    values = np.zeros((count, 4), dtype=np.uint8)
    values[:, :whole] = np.frombuffer(data, dtype=np.uint8).reshape(count, whole)
    return values.view("<u4").reshape(count)


def pack(bits: Bits) -> bytes:
    return np.packbits(bits, bitorder="little").tobytes()


def unpack(data: memoryview, count: int) -> Bits:
    """``count`` bits; the rest of the last byte must be zero."""
    packed: NDArray[np.uint8] = np.frombuffer(data, dtype=np.uint8)
    if len(packed) != packed_bytes(count):
        raise MalformedMessage("A field of bits has the wrong size.")
    if count % 8 and packed[-1] >> (count % 8):
        raise MalformedMessage("A field of bits has unused bits that are not zero.")
    return np.unpackbits(packed, count=count, bitorder="little")
