import itertools

import numpy as np
import pytest

from primia.mpc.reduction import reduction, window_count


def maxima(values, tree):
    bundle = values[tree.first]
    for level in tree.levels:
        best = np.max([bundle[index] for index in level.candidates], axis=0)
        bundle = np.concatenate([best, bundle[level.carried]])
    return bundle[tree.last]


CASES = [
    case
    for case in itertools.product([1, 2, 5, 8, 13], [1, 2, 3, 4, 5], [1, 2, 3], [0, 1, 2])
    if case[1] <= case[0] + 2 * case[3] and 2 * case[3] <= case[1]
]


@pytest.mark.parametrize("ways", [2, 3])
@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), CASES)
def test_it_finds_the_maximum_of_every_window(size, kernel, stride, padding, ways):
    values = (np.arange(size) * 7919) % 101 - 50
    padded = np.pad(values, padding, constant_values=-1000)
    count = window_count(size, kernel, stride, padding)
    tree = reduction(size, kernel, stride, padding, ways)
    expected = [padded[stride * j : stride * j + kernel].max() for j in range(count)]
    np.testing.assert_array_equal(maxima(values, tree), expected)
    assert len(tree.levels) <= depth(kernel, ways)
    if ways == 2:
        comparisons = sum(level.count for level in tree.levels)
        assert comparisons == len(tree.first) - count, "one less than candidates a window"


def depth(kernel, ways):
    """The least d with ways^d >= kernel."""
    return next(d for d in itertools.count() if ways**d >= kernel)


@pytest.mark.parametrize("ways", [2, 3])
@pytest.mark.parametrize("size", range(1, 33))
def test_candidates_keep_their_order(size, ways):
    """In a group each range ends where the next begins; a stand-in is the last one again."""
    tree = reduction(size, size, 1, 0, ways)
    assert len(tree.levels) == depth(size, ways)
    ranges = [(i, i) for i in tree.first]
    for level in tree.levels:
        groups = [[ranges[i] for i in group] for group in zip(*level.candidates, strict=True)]
        for group in groups:
            kept = list(dict.fromkeys(group))
            assert len(kept) >= 2
            assert group[len(kept) :] == [kept[-1]] * (len(group) - len(kept))
            assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(kept))
        won = [(group[0][0], group[-1][1]) for group in groups]
        ranges = won + [ranges[i] for i in level.carried]
    assert [ranges[i] for i in tree.last] == [(0, size - 1)]


@pytest.mark.parametrize(
    ("kernel", "together"),
    [(2, [2]), (3, [3]), (4, [2, 2]), (5, [2, 3]), (6, [2, 3]), (7, [3, 3]), (9, [3, 3])],
)
def test_three_are_compared_only_where_two_would_take_one_level_more(kernel, together):
    assert [level.ways for level in reduction(kernel, kernel, 1, 0, 3).levels] == together
