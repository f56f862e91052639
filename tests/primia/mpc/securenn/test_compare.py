"""Private comparison: every x against every r and both beta on four bits; borders on 64."""

import numpy as np
import pytest

from primia.mpc.securenn import field
from primia.mpc.securenn.compare import differences, draw_blinds, found_zero, masked_differences
from primia.prg import Stream
from tests.support.inference import seed


def shared_bits(x, width, number=1):
    bits = field.bits_of(x, width)
    first = field.uniform(Stream(seed(number), "bits"), bits.shape)
    return first, field.subtract(bits, first)


def every(values, betas=(0, 1)):
    grid = np.meshgrid(np.array(values, np.uint64), np.array(values, np.uint64), betas)
    x, r, beta = (axis.ravel() for axis in grid)
    return x, r, beta.astype(np.uint8)


def compared(x, r, beta, width, number=1):
    """What P0 and P1 send."""
    (blind,) = draw_blinds(seed(number), "compare", [len(x)], width)
    return [
        masked_differences(party, share, r, beta, blind)
        for party, share in enumerate(shared_bits(x, width, number))
    ]


@pytest.mark.parametrize("number", range(20))
def test_four_bits_exhaustively(number):
    x, r, beta = every(range(16))
    assert (found_zero(*compared(x, r, beta, 4, number)) == beta ^ (x > r)).all()


BORDERS = sorted(
    {0, 1, 2, 3, 2**64 - 3, 2**64 - 2, 2**64 - 1, 0xAAAAAAAAAAAAAAAA, 0x5555555555555555}
    | {2**k + d for k in (7, 8, 31, 32, 33, 62, 63) for d in (-1, 0, 1)}
)


def test_sixty_four_bits_at_the_borders():
    x, r, beta = every(BORDERS)
    assert (found_zero(*compared(x, r, beta, 64)) == beta ^ (x > r)).all()


def test_sixty_four_bits_at_random():
    stream = Stream(seed(5), "words")
    x, r = (stream.words((4000, 2)).view(np.uint64).ravel() for _ in range(2))
    r[::3] = x[::3]
    r[1::3] = x[1::3] ^ (np.uint64(1) << stream.words(len(r[1::3]), 6).astype(np.uint64))
    beta = stream.bits(4000)
    assert (found_zero(*compared(x, r, beta, 64)) == beta ^ (x > r)).all()


def test_one_difference_is_zero_or_none():
    x, r, beta = every(range(16))
    shares = shared_bits(x, 4)
    c = field.add(*(differences(party, s, r, beta) for party, s in enumerate(shares)))
    assert ((c == 0).sum(axis=0) == (beta ^ (x > r))).all()
