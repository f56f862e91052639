import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primia.errors import InvalidInput
from primia.prg import Seed, Stream
from primia.ring import EXACT, LIMB_BITS, MAX_TERMS, FloatMap, LinearMap, Window, sign_bit, sum_pool


def stream(number):
    return Stream(Seed(number.to_bytes(16, "little")), "test")


def convolve_plainly(x, weight, window):
    """Direct convolution in wrapping uint32 arithmetic."""
    (pad_h, pad_w), (step_h, step_w), groups = window.padding, window.stride, window.groups
    x = np.pad(x, ((0, 0), (0, 0), (pad_h, pad_h), (pad_w, pad_w)))
    out_channels, per_group, kernel_h, kernel_w = weight.shape
    height = (x.shape[2] - kernel_h) // step_h + 1
    width = (x.shape[3] - kernel_w) // step_w + 1
    result = np.zeros((len(x), out_channels, height, width), dtype=np.uint32)
    for o in range(out_channels):
        group = o // (out_channels // groups)
        for i in range(per_group):
            for a in range(kernel_h):
                for b in range(kernel_w):
                    plane = x[:, group * per_group + i, a:, b:]
                    plane = plane[:, : step_h * (height - 1) + 1, : step_w * (width - 1) + 1]
                    result[:, o] += plane[:, ::step_h, ::step_w] * weight[o, i, a, b]
    return result


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    groups=st.sampled_from([1, 2, 3]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    batch=st.integers(1, 3),
    narrow=st.booleans(),
)
def test_convolution_is_exact(seed, groups, kernel, stride, padding, batch, narrow):
    rng = stream(seed)
    channels = 2 if narrow else 80
    x = rng.words((batch, channels * groups, 6, 5))
    weight = rng.words((2 * groups, channels, *kernel))
    if narrow:
        weight = (weight.view(np.int32) >> 16).view(np.uint32)
    window = Window(stride, padding, groups)
    expected = convolve_plainly(x, weight, window)
    in_floats = FloatMap(weight, window)
    assert in_floats.narrow == narrow
    for linear in (in_floats, LinearMap(weight, window)):
        np.testing.assert_array_equal(linear(x), expected)


@pytest.mark.parametrize("bits", [15, 24, 32])
def test_dense_is_exact(bits):
    rng = stream(1)
    x, weight = rng.words((3, 500)), rng.words((7, 500)) >> (32 - bits)
    in_floats = FloatMap(weight, None)
    assert in_floats.narrow == (bits <= 24)
    for linear in (in_floats, LinearMap(weight)):
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(linear(x), x @ weight.T)


def test_largest_values_stay_exact_at_the_bound_of_a_narrow_map():
    terms = 4096
    largest = EXACT // (terms * ((1 << LIMB_BITS) - 1))
    x = np.full((1, terms), 0xFFFFFFFF, dtype=np.uint32)
    at_bound = FloatMap(np.full((1, terms), largest, dtype=np.int32), None)
    above = FloatMap(np.full((1, terms), largest + 1, dtype=np.int32), None)
    assert at_bound.narrow
    assert not above.narrow
    assert at_bound(x)[0, 0] == -terms * largest % 2**32
    assert above(x)[0, 0] == -terms * (largest + 1) % 2**32


def test_largest_values_stay_exact_at_the_bound_of_a_full_map():
    x = np.full((1, MAX_TERMS), 0xFFFFFFFF, dtype=np.uint32)
    weight = np.full((1, MAX_TERMS), 0xFFFFFFFE, dtype=np.uint32)
    weight[0, 0] = 0x80000000
    expected = (-0x80000000 + 2 * (MAX_TERMS - 1)) % 2**32
    linear = FloatMap(weight, None)
    assert not linear.narrow
    assert linear(x)[0, 0] == expected
    assert LinearMap(weight)(x)[0, 0] == expected


def test_a_map_that_would_not_be_exact_is_refused():
    with pytest.raises(InvalidInput, match="not exact"):
        LinearMap(np.zeros((1, MAX_TERMS + 1), dtype=np.int32))


@pytest.mark.parametrize(
    ("weight", "window"),
    [
        (np.zeros((2, 2), np.float32), None),
        (np.zeros((2, 2), np.int32), Window()),
        (np.zeros((2, 2, 1, 1), np.int32), None),
    ],
)
def test_other_weights_are_refused(weight, window):
    with pytest.raises(InvalidInput, match="weight"):
        LinearMap(weight, window)


def test_a_map_prints_no_weight():
    assert repr(LinearMap(np.full((1, 2), 77, dtype=np.int32))) == "LinearMap(<(1, 2)>)"


@pytest.mark.parametrize(
    ("kernel", "window"),
    [
        ((2, 3), Window((2, 1), (1, 0))),
        ((6, 5), Window()),
        ((1, 1), Window((3, 2))),
    ],
)
def test_sum_pool_equals_a_convolution_of_ones(kernel, window):
    rng = stream(2)
    x = rng.words((2, 3, 6, 5))
    ones = np.ones((3, 1, *kernel), dtype=np.uint32)
    expected = convolve_plainly(x, ones, Window(window.stride, window.padding, 3))
    np.testing.assert_array_equal(sum_pool(x, kernel, window), expected)


def test_sign_bit():
    x = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1], dtype=np.uint32)
    assert sign_bit(x).tolist() == [0, 0, 0, 1, 1]


def test_a_large_batch_is_worked_on_in_groups():
    rng = stream(3)
    x, weight = rng.words((3, 2, 1500, 1000)), rng.words((1, 2, 1, 1))
    expected = (x * weight.reshape(2, 1, 1)).sum(axis=1, keepdims=True, dtype=np.uint32)
    np.testing.assert_array_equal(FloatMap(weight, Window())(x), expected)
