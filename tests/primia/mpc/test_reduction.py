import itertools
import math

import numpy as np
import pytest

from primia.mpc.reduction import reduction, window_count


def maxima(values, tree):
    bundle = values[tree.first]
    for level in tree.levels:
        best = np.maximum(bundle[level.left], bundle[level.right])
        bundle = np.concatenate([best, bundle[level.carried]])
    return bundle[tree.last]


CASES = [
    case
    for case in itertools.product([1, 2, 5, 8, 13], [1, 2, 3, 4, 5], [1, 2, 3], [0, 1, 2])
    if case[1] <= case[0] + 2 * case[3] and 2 * case[3] <= case[1]
]


@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), CASES)
def test_it_finds_the_maximum_of_every_window(size, kernel, stride, padding):
    values = (np.arange(size) * 7919) % 101 - 50
    padded = np.pad(values, padding, constant_values=-1000)
    count = window_count(size, kernel, stride, padding)
    tree = reduction(size, kernel, stride, padding)
    expected = [padded[stride * j : stride * j + kernel].max() for j in range(count)]
    np.testing.assert_array_equal(maxima(values, tree), expected)
    assert len(tree.levels) <= math.ceil(math.log2(kernel))
    comparisons = sum(len(level.left) for level in tree.levels)
    assert comparisons == len(tree.first) - count, "one comparison less than candidates a window"


@pytest.mark.parametrize("size", range(1, 20))
def test_candidates_keep_their_order(size):
    """Every pair compared has its left range wholly before its right one."""
    tree = reduction(size, size, 1, 0)
    ranges = [(i, i) for i in tree.first]
    for level in tree.levels:
        pairs = [(ranges[a], ranges[b]) for a, b in zip(level.left, level.right, strict=True)]
        assert all(left[1] + 1 == right[0] for left, right in pairs)
        ranges = [(left[0], right[1]) for left, right in pairs] + [ranges[i] for i in level.carried]
    assert [ranges[i] for i in tree.last] == [(0, size - 1)]
