import numpy as np
import pytest
from scipy.stats import chi2

from primia.mpc.securenn import field, odd, ring64
from primia.prg import Stream
from tests.support.inference import seed

EVERY = np.arange(67, dtype=np.uint8)


def pairs():
    a, b = np.meshgrid(EVERY, EVERY)
    return a.ravel(), b.ravel()


def test_the_fields_arithmetic_on_every_pair():
    a, b = pairs()
    wide = a.astype(int), b.astype(int)
    assert (field.add(a, b) == (wide[0] + wide[1]) % 67).all()
    assert (field.subtract(a, b) == (wide[0] - wide[1]) % 67).all()
    factors = b > 0
    product = field.multiply(a[factors], b[factors])
    assert (product == (wide[0] * wide[1] % 67)[factors]).all()


@pytest.mark.parametrize("width", [4, 64])
def test_words_as_bits(width):
    values = np.array([0, 1, 2**63 + 5, 2**64 - 1, 0x0123456789ABCDEF], np.uint64)
    bits = field.bits_of(values, width)
    for i in range(width):
        assert [int(v) >> i & 1 for v in values] == bits[i].tolist()


@pytest.mark.parametrize(("draw", "least"), [(field.uniform, 0), (field.uniform_nonzero, 1)])
def test_elements_are_uniform(draw, least):
    """Chi-square at 1e-6: of single elements, and of neighbours, which come from one word."""
    drawn = draw(Stream(seed(1), "field"), (2, 10**6)).reshape(-1, 2).astype(int) - least
    size = 67 - least
    assert drawn.min() == 0
    assert drawn.max() == size - 1
    counts = np.bincount(drawn[:, 0] * size + drawn[:, 1], minlength=size**2)
    expected = len(drawn) / size**2
    assert ((counts - expected) ** 2 / expected).sum() < chi2.isf(1e-6, size**2 - 1)


def test_both_holders_of_a_seed_draw_the_same_in_odd_numbers():
    first, second = (Stream(seed(1), "field") for _ in range(2))
    for count in (1, 63, 1001):
        assert (field.uniform(first, count) == field.uniform(second, count)).all()


BORDERS = [0, 1, 2, 2**32, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 3, 2**64 - 2]


def test_the_odd_rings_arithmetic_at_its_borders():
    every = np.array(BORDERS, np.uint64)
    a, b = (x.ravel() for x in np.meshgrid(every, every))
    modulus = 2**64 - 1
    sums = [(int(x) + int(y)) % modulus for x, y in zip(a, b, strict=True)]
    gaps = [(int(x) - int(y)) % modulus for x, y in zip(a, b, strict=True)]
    assert odd.add(a, b).tolist() == sums
    assert odd.subtract(a, b).tolist() == gaps
    assert odd.reduce(np.array([modulus, 5], np.uint64)).tolist() == [0, 5]


def test_truncated_shares_are_a_unit_off_at_most():
    values = np.array([0, 1, -1, 1023, 1024, -1024, 2**29, -(2**29), 123456, -98765], np.int64)
    values = np.repeat(values, 200)
    first = ring64.uniform(Stream(seed(2), "shares"), len(values))
    second = values.view(np.uint64) - first
    total = ring64.truncate(first, 0, 10) + ring64.truncate(second, 1, 10)
    off = total.view(np.int64) - values / 2**10
    assert np.abs(off).max() < 1
    assert abs(off.mean()) < 0.05
