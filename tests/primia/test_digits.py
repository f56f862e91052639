"""Products on signed bytes equal products in the ring, whatever the sizes and values."""

import numpy as np
import pytest

from primia import digits, ring
from primia.digits import DigitMap
from primia.prg import Seed, Stream
from primia.ring import FloatMap, LinearMap, Window

needs_bytes = pytest.mark.skipif(
    not digits.available(), reason="no exact and fast products of bytes on this machine"
)


def words(number, shape):
    return Stream(Seed(number.to_bytes(16, "little")), "digits").words(shape)


def test_digits_make_up_the_number():
    values = words(1, 1000)
    values[:6] = [0, 1, 0x7F, 0x80, 0x80808080, 0xFFFFFFFF]
    found = digits.digits(values).astype(np.int64)
    assert found.shape == (1000, 4)
    assert ((found * (1 << 8 * np.arange(4))).sum(axis=1) % 2**32 == values).all()


@pytest.mark.parametrize(
    ("lowest", "highest", "count"),
    [
        (-128, 127, 1),
        (-128, 128, 2),
        (-129, 0, 2),
        (-32896, 32639, 2),
        (-32897, 0, 3),
        (0, 32640, 3),
        (-(2**31), 2**31 - 1, 4),
    ],
)
def test_as_few_digits_as_hold_the_weights(lowest, highest, count):
    weight = np.array([lowest, 0, highest], dtype=np.int32)
    assert digits.digits_needed(weight) == count
    kept = digits.digits(weight.view(np.uint32))[:, :count].astype(np.int64)
    assert (kept * (1 << 8 * np.arange(count))).sum(axis=1).tolist() == weight.tolist() or count > 3


@needs_bytes
@pytest.mark.parametrize("shift", [0, 8, 16, 24])
@pytest.mark.parametrize(
    ("batch", "channels", "side", "kernel", "window"),
    [
        (1, 3, 33, (7, 7), Window((2, 2), (3, 3))),
        (3, 16, 9, (3, 3), Window((1, 1), (1, 1))),
        (2, 8, 8, (1, 1), Window((2, 2))),
        (2, 5, 7, (2, 3), Window((1, 3), (2, 0))),
    ],
)
def test_convolutions_are_exact(batch, channels, side, kernel, window, shift):
    x = words(2, (batch, channels, side, side))
    x[0, 0, 0, :3] = [0x80808080, 0x7F7F7F7F, 0xFFFFFFFF]
    weight = (words(3, (6, channels, *kernel)).view(np.int32) >> shift).astype(np.int32)
    found = DigitMap(weight, window.stride, window.padding)(x)
    np.testing.assert_array_equal(found, FloatMap(weight, window)(x))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("outputs", [1, 2, 5])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_maps_of_the_least_sizes_are_exact(count, outputs, channels):
    for side, kernel in ((1, 1), (3, 1), (3, 3)):
        x, weight = (
            words(6, (count, channels, side, side)),
            words(7, (outputs, channels, kernel, kernel)),
        )
        found = LinearMap(weight, Window())(x)
        np.testing.assert_array_equal(found, FloatMap(weight, Window())(x))


@needs_bytes
@pytest.mark.parametrize("size", [1, 1 << 10, 1 << 14])
def test_bands_and_groups_of_images_change_nothing(monkeypatch, size):
    x, weight = words(4, (5, 4, 12, 10)), words(5, (3, 4, 3, 3))
    window = Window((2, 1), (1, 1))
    monkeypatch.setattr(digits, "_PATCH_BYTES", size)
    found = DigitMap(weight, window.stride, window.padding)(x)
    np.testing.assert_array_equal(found, FloatMap(weight, window)(x))


@needs_bytes
@pytest.mark.parametrize("bits", [32, 64])
def test_the_largest_sums_do_not_saturate(bits):
    """As many products of the largest digits as there may be: nearly 2^31 each."""
    size, terms = bits // 8, digits.MAX_TERMS
    least = sum(-128 << 8 * i for i in range(size))
    x = np.full((1, terms, 1, 1), least % 2**bits, dtype=f"u{size}")
    found = DigitMap(np.full((1, terms, 1, 1), -128, f"i{size}"), (1, 1), (0, 0))(x)
    assert int(found[0, 0, 0, 0]) == terms * -128 * least % 2**bits


@needs_bytes
@pytest.mark.parametrize("shift", [0, 24, 40, 56])
@pytest.mark.parametrize(
    ("kernel", "window"), [((3, 3), Window((1, 1), (1, 1))), ((1, 1), Window((2, 2)))]
)
def test_convolutions_over_64_bits_are_exact(kernel, window, shift):
    def wide(number, shape):
        return words(number, (*shape, 2)).view(np.uint64)[..., 0]

    x, weight = wide(8, (2, 4, 5, 5)), wide(9, (3, 4, *kernel)).view(np.int64) >> shift
    found = DigitMap(weight, window.stride, window.padding)(x)
    pad_h, pad_w = window.padding
    padded = np.pad(x, ((0, 0), (0, 0), (pad_h, pad_h), (pad_w, pad_w)))
    seen = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(2, 3))
    seen = seen[:, :, :: window.stride[0], :: window.stride[1]]
    expected = np.einsum("nchwij,ocij->nohw", seen, weight.view(np.uint64))
    np.testing.assert_array_equal(found, expected)


def test_machines_that_saturate_use_floats(monkeypatch):
    monkeypatch.setattr(ring.digits, "available", lambda: False)
    linear = LinearMap(np.ones((2, 3), np.int32))
    assert isinstance(linear._map, FloatMap)
