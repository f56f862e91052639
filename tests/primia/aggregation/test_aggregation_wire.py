from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primia.aggregation.server import RunningSum
from primia.aggregation.terms import RoundId
from primia.aggregation.wire import (
    HEADER_BYTES,
    Header,
    Kind,
    chunks,
    frame,
    parse_frame,
    read_header,
    read_integers,
)
from primia.errors import InvalidInput, MalformedMessage, UnexpectedMessage

ROUND = RoundId(bytes(range(16)), 7)
HEADER = Header(Kind.MASKED, ROUND, 5)
VECTOR = np.array([0, 1, 2**31, 2**32 - 1, 0x01020304], dtype=np.uint32)
FROZEN = (
    "50475531"  # magic "PGU1"
    "01000000"  # masked, reserved
    "000102030405060708090a0b0c0d0e0f"  # run
    "07000000"  # round
    "0500000000000000"  # values
    "00000000" "01000000" "00000080" "ffffffff" "04030201"
)  # fmt: skip


def test_frozen_frame() -> None:
    assert b"".join(frame(HEADER, VECTOR)).hex() == FROZEN
    assert HEADER.frame_bytes == len(FROZEN) // 2
    assert HEADER_BYTES == 36
    assert np.array_equal(parse_frame(bytes.fromhex(FROZEN), HEADER), VECTOR)


def test_a_plain_frame_carries_float32() -> None:
    header = Header(Kind.PLAIN, ROUND, 3)
    vector = np.array([1.5, -0.0, 3e38], dtype=np.float32)
    found = parse_frame(b"".join(frame(header, vector)), header)
    assert found.dtype == np.float32
    assert found.tobytes() == vector.tobytes()


def test_four_bytes_a_value() -> None:
    header = Header(Kind.MASKED, ROUND, 11_200_000)
    assert header.frame_bytes == 4 * 11_200_000 + 36


def test_large_frames_come_in_pieces() -> None:
    count = (1 << 18) + 3
    header = Header(Kind.MASKED, ROUND, count)
    pieces = list(frame(header, np.arange(count, dtype=np.uint32)))
    assert [len(piece) for piece in pieces] == [36, 1 << 20, 12]


@pytest.mark.parametrize(
    "vector",
    [VECTOR[:4], VECTOR.astype(np.float32), VECTOR.astype(np.uint64), VECTOR.reshape(1, 5)],
    ids=["short", "float", "wide", "matrix"],
)
def test_a_vector_that_the_header_does_not_announce_is_refused(vector: Any) -> None:
    with pytest.raises(ValueError, match="not what the header announces"):
        list(frame(HEADER, vector))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kind": Kind.PLAIN}, "kind is masked; plain"),
        ({"round_id": RoundId(bytes(16), 7)}, "run is 000102"),
        ({"round_id": RoundId(ROUND.run, 8)}, "round is 7; 8"),
        ({"count": 6}, "number of values is 5; 6"),
        ({"integers": 2}, "number of integers is 0; 2"),
    ],
    ids=["kind", "run", "round", "count", "integers"],
)
def test_a_header_other_than_expected_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UnexpectedMessage, match=named):
        read_header(HEADER.to_bytes(), replace(HEADER, **change))


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 0), (3, 0x32), (4, 0), (4, 4), (5, 1)],
    ids=["magic", "version", "kind 0", "kind 4", "reserved"],
)
def test_frozen_bad_headers(at: int, value: int) -> None:
    data = bytearray(HEADER.to_bytes())
    data[at] = value
    with pytest.raises(MalformedMessage):
        read_header(bytes(data), HEADER)


@pytest.mark.parametrize("kind", [Kind.PLAIN, Kind.INTEGERS])
@pytest.mark.parametrize("at", [6, 7])
def test_only_a_masked_update_carries_integers(kind: Kind, at: int) -> None:
    header = Header(kind, ROUND, 5)
    data = bytearray(header.to_bytes())
    data[at] = 1
    with pytest.raises(MalformedMessage, match="Only a masked update"):
        read_header(bytes(data), header)


def test_integers_lie_between_header_and_values() -> None:
    header = Header(Kind.MASKED, ROUND, 5, integers=2)
    integers = np.array([1, 2**63], dtype=np.uint64)
    data = b"".join(frame(header, VECTOR, integers))
    assert data[6:8] == b"\x02\x00"
    assert len(data) == header.frame_bytes == 36 + 2 * 8 + 5 * 4
    assert np.array_equal(parse_frame(data, header), VECTOR)
    file = io.BytesIO(data[HEADER_BYTES:])
    assert np.array_equal(read_integers(file, 2), integers)
    assert file.read() == VECTOR.tobytes()
    with pytest.raises(MalformedMessage, match="payload has 3 bytes; 16"):
        read_integers(io.BytesIO(data[-3:]), 2)
    with pytest.raises(ValueError, match="announces 2 integers"):
        list(frame(header, VECTOR))


@pytest.mark.parametrize("count", [0, 2**31 + 1, 2**64 - 1])
def test_absurd_sizes_are_refused(count: int) -> None:
    data = HEADER.to_bytes()[:28] + count.to_bytes(8, "little")
    with pytest.raises(MalformedMessage, match="values is not accepted"):
        Header.parse(data)


def test_short_bodies_are_refused() -> None:
    data = bytes.fromhex(FROZEN)
    for size in range(len(data)):
        with pytest.raises(MalformedMessage):
            parse_frame(data[:size], HEADER)
    with pytest.raises(MalformedMessage, match="21 bytes; 20"):
        parse_frame(data + b"\0", HEADER)


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_no_header(data: bytes) -> None:
    for candidate in (data, b"PGU1" + data):
        with contextlib.suppress(MalformedMessage):
            assert Header.parse(candidate).to_bytes() == candidate


class Dribble(io.RawIOBase):
    """A socket-like file that gives a few bytes at a time."""

    def __init__(self, data: bytes, most: int) -> None:
        self._file, self._most = io.BytesIO(data), most

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(memoryview(buffer)[: self._most])


COUNT = (1 << 18) + 5
PAYLOAD = np.arange(COUNT, dtype=np.uint32).tobytes()
SOURCES: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "array": lambda data: np.frombuffer(data, dtype=np.uint32),
    "file": io.BytesIO,
    "socket": lambda data: Dribble(data, 4097),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_payload_is_read_from_any_source(source: str) -> None:
    total = RunningSum(COUNT)
    total.add(SOURCES[source](PAYLOAD))
    total.add(SOURCES[source](PAYLOAD))
    assert np.array_equal(total.total, 2 * np.arange(COUNT, dtype=np.uint32))


@pytest.mark.parametrize("source", [name for name in SOURCES if name != "array"])
@pytest.mark.parametrize(
    "data", [b"", PAYLOAD[:-1], PAYLOAD + b"\0"], ids=["none", "short", "long"]
)
def test_a_payload_of_another_length_is_refused(source: str, data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        RunningSum(COUNT).add(SOURCES[source](data))


def test_pieces_say_where_they_belong() -> None:
    parts = [(part, values.copy()) for part, values in chunks(io.BytesIO(PAYLOAD), COUNT, "<u4")]
    assert [part for part, _ in parts] == [slice(0, 1 << 18), slice(1 << 18, COUNT)]
    assert list(parts[1][1]) == list(range(1 << 18, COUNT))


def test_the_running_sum_wraps_and_can_be_stored(tmp_path: Path) -> None:
    path = tmp_path / "sum"
    RunningSum(5).total.tofile(path)
    for _ in range(2):
        stored = np.memmap(path, dtype="<u4", mode="r+")
        RunningSum(5, stored).add(VECTOR.tobytes())
        stored.flush()
    assert list(np.fromfile(path, dtype="<u4")) == [0, 2, 0, 2**32 - 2, 0x02040608]


@pytest.mark.parametrize("count", [0, -1, 2**31 + 1])
def test_sums_of_absurd_sizes_are_refused(count: int) -> None:
    with pytest.raises(InvalidInput):
        RunningSum(count)


@pytest.mark.parametrize("stored", [np.zeros(4, np.uint32), np.zeros(5, np.int64)], ids=str)
def test_a_stored_sum_of_another_round_is_refused(stored: Any) -> None:
    with pytest.raises(InvalidInput, match="stored sum"):
        RunningSum(5, stored)
