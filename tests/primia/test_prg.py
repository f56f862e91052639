"""Streams that begin in the middle are the rest of those that begin at the front."""

import numpy as np
import pytest

from primia.prg import Seed, Stream

SEED = Seed(bytes(range(16)))


@pytest.mark.parametrize("start", [0, 1, 15, 16, 17, 4 * 1000, (1 << 20) + 3])
def test_a_stream_begins_anywhere(start):
    whole = Stream(SEED, "test").raw(start + 100)
    assert Stream(SEED, "test", start).raw(100) == whole[start:]


def test_a_late_start_costs_nothing_and_repeats_nothing():
    """Beyond 2^32 blocks the counter goes on."""
    edge = 16 << 32
    before, after = Stream(SEED, "test", edge - 16).raw(32), Stream(SEED, "test", edge).raw(16)
    assert before[16:] == after
    assert len({before[:16], after, Stream(SEED, "test").raw(16)}) == 3


def test_words_from_the_middle():
    whole = Stream(SEED, "test").words((5, 3))
    np.testing.assert_array_equal(Stream(SEED, "test", 4 * 6).words((3, 3)), whole[2:])
