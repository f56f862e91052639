"""The dealer works through a batch in groups of images: the same bytes, and no more memory."""

import tracemalloc

import numpy as np
import pytest

from primia.mpc import dealer, sinks
from primia.mpc.dealer import deal
from primia.mpc.deferred import Deferred, lifted
from primia.mpc.sinks import Sinks
from tests.support.inference import DEAL, Builder, dealt, seed, words

# SHA-256 of p0, p1 and common, whatever the size of the groups.
FROZEN = (
    "8dc507f7f9c11d6962704a88a8853e1f398b1fa7ee42df8f28ea5e4d35de9753",
    "c56188c98239f8a28abde898468dc36782d8c0109aefe512e544d217e2fc69be",
    "f678d0fdf59fc1468a80e3afc19886da297df022a2487a8f5735c890a22bd7b0",
)


def winding_plan():
    """Between linear layers: pools and sums of known shares, several ways to one."""
    b = Builder((2, 9, 8))
    x = b.max_pool(b.relu(b.conv(0, 4)), 3, 2, 1)  # of known shares, over several levels
    y = b.relu(b.conv(x, 4, groups=2))
    x = b.sum_pool(b.add(x, y), (2, 1))
    x = b.max_pool(b.conv(b.add(x, x), 3), 2, 1, 0, low=4)
    b.head(b.relu(x, 0), 7)
    return b.plan(6, "label")


@pytest.mark.parametrize("group", [1, 150, 1 << 18])
def test_groups_of_any_size_write_the_same_bytes(monkeypatch, group):
    monkeypatch.setattr(dealer, "_GROUP", group)
    found = dealt(winding_plan(), 5, seed(1), seed(2)).manifest
    assert (found.p0, found.p1, found.common) == FROZEN


class Forgetful:
    """A sink that counts."""

    def __init__(self):
        self.size = 0

    def write(self, data):
        self.size += len(data)


def wide_plan():
    """65,536 values an image from the first layer, of few bits, so that keys are small."""
    b = Builder((1, 64, 64))
    x = b.relu(b.narrow(b.conv(0, 16), 4, 20), 0)  # 8 bits are compared
    b.head(b.relu(b.conv(x, 1, 3, 4)), 2)
    return b.plan(6)


def peak(plan, batch):
    """The largest number of bytes that Python and NumPy held while dealing."""
    out = [Forgetful() for _ in range(3)]
    tracemalloc.start()
    try:
        deal(plan, batch, seed(1), DEAL, Sinks(*out))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert out[2].size > 1_000_000 * batch
    return most


def test_memory_does_not_grow_with_the_batch(monkeypatch):
    """Four images fill blocks and groups; 28 more took 8.6 MB when a batch's shares were held."""
    monkeypatch.setattr(sinks, "_AHEAD", 1)  # else how far the dealer is ahead decides
    monkeypatch.setattr(dealer, "_GROUP", 1 << 17)
    dealt(wide_plan(), 1, seed(1), seed(2))  # loads what is loaded once
    few, many = (peak(wide_plan(), batch) for batch in (4, 32))
    assert many < few + 1_000_000


def test_a_share_is_computed_once_on_the_way_to_another():
    """A sum of a sum of … with itself: two to the power of its depth ways, deeper than a stack."""
    calls = []

    def leaf(first, count):
        calls.append((first, count))
        return words(7, (count, 3))

    share = Deferred.seeded(leaf, (3,))
    for _ in range(2000):
        share = lifted(np.add, [share, share])
    assert share.size == 3
    assert not share.part(4, 2).any()  # 2^2000 times anything
    assert calls == [(4, 2)]


def test_shares_at_hand_and_deferred_ones_agree():
    whole = words(3, (6, 4))
    share = Deferred.seeded(lambda first, count: whole[first : first + count], (4,))
    at_hand, later = (lifted(np.multiply, [x, lifted(np.negative, [x])]) for x in (whole, share))
    np.testing.assert_array_equal(later.part(2, 3), at_hand[2:5])
