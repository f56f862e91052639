"""The reference maps against torch (float64), and exact on integers of every size."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from primia.mpc.compile_maps import convolve, dense, matmul, max_pool, sum_pool
from tests.support.inference import signed

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    kernel=SIZES,
    stride=SIZES,
    padding=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    groups=st.sampled_from([1, 2]),
    height=st.integers(3, 7),
)
@settings(max_examples=40, deadline=None)
def test_convolutions_equal_torch(kernel, stride, padding, groups, height):
    x = signed(1, (2, 4, height, 6), 8)
    weight = signed(2, (6, 4 // groups, *kernel), 8)
    wanted = functional.conv2d(
        torch.from_numpy(x).double(), torch.from_numpy(weight).double(), None, stride, padding,
        1, groups,
    ).numpy()  # fmt: skip
    found = convolve(x, weight, stride, padding, groups)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, wanted)
    real = convolve(x.astype(float), weight.astype(float), stride, padding, groups)
    np.testing.assert_array_equal(real, wanted)


@given(kernel=st.integers(2, 3), stride=st.integers(1, 3), padding=st.integers(0, 1))
@settings(max_examples=20, deadline=None)
def test_pooling_equals_torch(kernel, stride, padding):
    x = signed(3, (2, 3, 7, 8), 12) - 3000  # padding must never win
    pair = ((kernel, kernel), (stride, stride), (padding, padding))
    real = torch.from_numpy(x).double()
    np.testing.assert_array_equal(
        max_pool(x, *pair), functional.max_pool2d(real, kernel, stride, padding).numpy()
    )
    np.testing.assert_array_equal(max_pool(x.astype(float), *pair), max_pool(x, *pair))
    np.testing.assert_allclose(
        sum_pool(x, *pair), functional.avg_pool2d(real, kernel, stride, padding) * kernel**2
    )


@pytest.mark.parametrize(("left", "right"), [(8, 8), (17, 32), (32, 17), (31, 26), (26, 31)])
def test_integer_products_are_exact(left, right):
    a, b = signed(4, (5, 16), left), signed(5, (16, 3), right)
    exact = a.astype(object) @ b.astype(object)  # Python's integers
    np.testing.assert_array_equal(matmul(a, b), exact.astype(np.int64))


def test_the_extremes_are_exact():
    a, b = np.full((1, 9), -(2**16) + 1), np.full((9, 1), -(2**31))
    assert matmul(a, b).item() == 9 * (2**16 - 1) * 2**31


def test_sums_that_leave_int64_are_refused():
    with pytest.raises(OverflowError):
        matmul(np.full((1, 4), 2**31), np.full((4, 1), 2**31))


def test_dense_multiplies_by_the_transpose():
    assert dense(np.array([[1, 2]]), np.array([[3, 4], [5, 6], [7, 8]])).tolist() == [[11, 17, 23]]
