import numpy as np
import pytest

from primia.errors import InvalidInput
from primia.mpc.securenn import ring64
from primia.mpc.securenn.ring64 import FloatMap64, LinearMap64
from primia.prg import Stream
from primia.ring import Window
from tests.support.inference import seed, signed


def both_equal(weight, x, expected, window=None):
    """By the way that this machine takes, and by the one that every machine can take."""
    for kind in (LinearMap64, FloatMap64):
        linear = kind(weight, window)
        assert (linear(x) == expected).all()
        assert (linear(x[::-1])[::-1] == expected).all()  # a map is used again and again


def words(number, shape):
    return ring64.uniform(Stream(seed(number), "test"), shape)


def dense(x, weight):
    """With uint64, which wraps as the ring does."""
    return x @ weight.astype(np.int64).view(np.uint64).T


def convolved(x, weight, window):
    (down, across), pads = window.stride, window.padding
    padded = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in pads)))
    views = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    views = views[:, :, ::down, ::across]
    parts = zip(np.split(views, window.groups, 1), np.split(weight, window.groups), strict=True)
    return np.concatenate([np.einsum("nchwij,ocij->nohw", v, w) for v, w in parts], 1)


EXTREMES = np.array(
    [0, 1, 2**21, 2**21 - 1, 2**42, 2**43 - 2**21, 2**63, 2**63 - 1, 2**64 - 1, 2**64 - 2**20],
    np.uint64,
)


@pytest.mark.parametrize("features", [1, 8, 2049, 10_000])
def test_full_factors_wrap_as_they_must(features):
    x, weight = words(1, (3, features)), words(2, (5, features))
    both_equal(weight, x, dense(x, weight.view(np.int64)))


def test_the_largest_limbs_stay_exact():
    for value in EXTREMES:
        x = np.full((1, 2048), value)
        weight = np.stack([np.full(2048, other) for other in EXTREMES])
        both_equal(weight, x, dense(x, weight.view(np.int64)))


@pytest.mark.parametrize("largest", [1, 2**10, 2**16 - 1])
def test_narrow_weights(largest):
    weight = np.array([[largest] * 4608, [-largest] * 4608], np.int32)
    for x in (words(3, (2, 4608)), np.full((1, 4608), 2**64 - 1, np.uint64)):
        both_equal(weight, x, dense(x, weight))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("full", [False, True])
def test_convolutions(groups, full):
    window = Window((2, 1), (1, 2), groups)
    x = words(4, (2, 4, 7, 6))
    weight = words(5, (8, 4 // groups, 3, 3))
    if not full:
        weight = signed(5, weight.shape, 17).astype(np.int32)
    wide = weight if full else weight.astype(np.int64).view(np.uint64)
    both_equal(weight, x, convolved(x, wide, window), window)


def test_sums_over_many_channels_are_split():
    window = Window()
    x, weight = words(6, (1, 700, 4, 4)), words(7, (2, 700, 3, 3))
    both_equal(weight, x, convolved(x, weight, window), window)


def test_what_is_not_exact_is_refused():
    with pytest.raises(InvalidInput, match="not exact"):
        LinearMap64(words(8, (2, 500, 3, 3)), Window(groups=2))(words(9, (1, 1000, 3, 3)))
    with pytest.raises(InvalidInput, match="int32 or uint64"):
        LinearMap64(np.zeros((2, 2)))
