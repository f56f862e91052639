from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from primia.errors import MalformedMessage
from primia.learning.layout import (
    InvalidState,
    Layout,
    check_vector,
    read_metadata,
    read_state,
    read_state_file,
    state_digest,
    subtract_state_file,
    write_state,
)

LAYOUT = Layout.of(
    [
        ("conv.weight", (2, 1, 3, 3), "parameters"),
        ("scale", (), "parameters"),
        ("bn.running_mean", (4,), "buffers"),
    ]
)
VECTOR = np.arange(LAYOUT.size, dtype=np.float32)


def _tensors() -> dict[str, np.ndarray]:
    return {slot.name: VECTOR[slot.span].reshape(slot.shape) for slot in LAYOUT.slots}


def test_offsets_sizes_and_groups() -> None:
    assert [slot.offset for slot in LAYOUT.slots] == [0, 18, 19]
    assert LAYOUT.size == 23
    assert LAYOUT.group_size("parameters") == 19
    assert LAYOUT.group_size("buffers") == 4
    assert LAYOUT.slot_at(18).name == "scale"
    assert LAYOUT.slot_at(22).name == "bn.running_mean"


def test_a_state_survives_and_its_bytes_are_always_the_same() -> None:
    metadata = {"classes": ["a", "b"], "version": 3, "zeta": 1}
    data = write_state(VECTOR, LAYOUT, metadata)
    assert np.array_equal(read_state(data, LAYOUT), VECTOR)
    assert read_metadata(data) == metadata
    assert all(write_state(VECTOR, LAYOUT, metadata) == data for _ in range(5))


def test_a_file_is_read_tensor_by_tensor_as_its_bytes_are(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for data in (write_state(VECTOR, LAYOUT, {"version": 3}), save(_tensors())):
        path.write_bytes(data)
        assert np.array_equal(read_state_file(path, LAYOUT), VECTOR)
    path.write_bytes(save({**_tensors(), "bn.running_mean": np.zeros(4)}))
    with pytest.raises(InvalidState, match=r"'bn\.running_mean' is F64"):
        read_state_file(path, LAYOUT)
    path.write_bytes(save({"scale": np.zeros((), np.float32)}))
    with pytest.raises(InvalidState, match=r"'conv.weight' is missing"):
        read_state_file(path, LAYOUT)
    for data in (b"", b"no weights", write_state(VECTOR, LAYOUT)[:-1]):
        path.write_bytes(data)
        with pytest.raises(MalformedMessage, match="not a safetensors file"):
            read_state_file(path, LAYOUT, MalformedMessage)
    path.write_bytes(bytes(2 << 20))
    with pytest.raises(InvalidState, match="at most"):
        read_state_file(path, LAYOUT)


def test_a_file_is_subtracted_in_place(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(write_state(VECTOR, LAYOUT))
    vector = VECTOR * 3
    subtract_state_file(vector, path, LAYOUT)
    assert np.array_equal(vector, VECTOR * 2)
    path.write_bytes(save({"scale": np.zeros((), np.float32)}))
    with pytest.raises(MalformedMessage, match=r"'conv.weight' is missing"):
        subtract_state_file(vector, path, LAYOUT, MalformedMessage)
    with pytest.raises(InvalidState, match="float32 vector of 23"):
        subtract_state_file(vector[1:], path, LAYOUT)


def test_behind_its_header_a_file_is_the_vector() -> None:
    data = write_state(VECTOR, LAYOUT, {"läuft": "é"})
    start = 8 + int.from_bytes(data[:8], "little")
    assert start % 8 == 0
    assert np.array_equal(np.frombuffer(data[start:], "<f4"), VECTOR)
    assert {name: value.tolist() for name, value in load(data).items()} == {
        name: value.tolist() for name, value in _tensors().items()
    }


def test_a_layout_survives_as_json() -> None:
    assert Layout.from_json(LAYOUT.to_json()) == LAYOUT


def test_the_digest_changes_with_a_value_and_with_the_layout() -> None:
    other = VECTOR.copy()
    other[7] = np.nextafter(other[7], np.float32(9))
    renamed = Layout.of([(f"x{slot.name}", slot.shape, slot.group) for slot in LAYOUT.slots])
    digests = {
        state_digest(VECTOR, LAYOUT),
        state_digest(other, LAYOUT),
        state_digest(VECTOR, renamed),
    }
    assert len(digests) == 3
    assert state_digest(VECTOR.copy(), LAYOUT) in digests


def test_wrong_tensors_are_named() -> None:
    tensors = _tensors()
    missing = {name: value for name, value in tensors.items() if name != "scale"}
    with pytest.raises(InvalidState, match="'scale' is missing"):
        read_state(save(missing), LAYOUT)
    with pytest.raises(InvalidState, match="'extra' is not part"):
        read_state(save({**tensors, "extra": np.zeros(1, np.float32)}), LAYOUT)
    with pytest.raises(InvalidState, match=r"'conv.weight' is F32 \(18,\)"):
        read_state(save({**tensors, "conv.weight": np.zeros(18, np.float32)}), LAYOUT)
    with pytest.raises(InvalidState, match=r"'bn\.running_mean' is F64"):
        read_state(save({**tensors, "bn.running_mean": np.zeros(4)}), LAYOUT)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(value: float) -> None:
    tensors = _tensors()
    tensors["bn.running_mean"] = np.array([0, value, 0, 0], np.float32)
    with pytest.raises(InvalidState, match=r"'bn\.running_mean' holds values that are not finite"):
        read_state(save(tensors), LAYOUT)
    bad = VECTOR.copy()
    bad[18] = value
    with pytest.raises(InvalidState, match="'scale'"):
        write_state(bad, LAYOUT)


@pytest.mark.parametrize(
    "vector", [np.zeros(22, np.float32), np.zeros(23), np.zeros((1, 23), np.float32)]
)
def test_a_vector_of_another_kind_is_refused(vector: np.ndarray) -> None:
    with pytest.raises(InvalidState, match="23 elements"):
        check_vector(vector, LAYOUT)


def test_the_caller_chooses_the_error_for_what_peers_send() -> None:
    with pytest.raises(MalformedMessage):
        read_state(b"", LAYOUT, MalformedMessage)


def test_a_file_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(InvalidState, match="at most"):
        read_state(bytes(2 << 20), LAYOUT)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidState):
        read_state(data, LAYOUT)
    assert read_metadata(data) == {}


@given(st.integers(0, 400), st.integers(1, 255))
def test_a_damaged_file_is_refused_or_differs_in_values_only(at: int, flip: int) -> None:
    data = bytearray(write_state(VECTOR, LAYOUT))
    data[at % len(data)] ^= flip
    try:
        vector = read_state(bytes(data), LAYOUT)
    except InvalidState:
        return
    assert vector.shape == VECTOR.shape
    assert np.isfinite(vector).all()
