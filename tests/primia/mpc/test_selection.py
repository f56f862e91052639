"""What is selected from opened and hidden bits: every case of a small ring, in shares."""

import numpy as np
import pytest

from primia.mpc.gate_shape import Gate
from primia.mpc.masks import ones
from primia.mpc.selection import BITS, Item, compared_lanes, corrections, dealt, factors, selected
from tests.support.inference import words


def shared(gate, masks, hidden):
    """Each item of a gate in two shares, the second drawn: of each party, by item."""
    count, found = len(hidden[0]), ({}, {})
    products = {"": np.ones(count, np.uint32), **dict(zip(BITS[gate.ways], hidden, strict=True))}
    for factor in factors(gate):
        products[factor] = np.prod([products[bit] for bit in factor], axis=0, dtype=np.uint32)
    items = corrections(gate)
    if not gate.widen:  # the halves of r itself are the parties'
        items += [Item("", "r", lane) for lane in range(gate.lanes)]
    for number, item in enumerate(items):
        value = products[item.factor]
        if item.times == "r":
            value = value * masks[item.lane]
        if item.times == "mu":
            value = value * (masks[item.lane] >> np.uint32(gate.width - 1) << np.uint32(gate.width))
        found[1][item] = words(500 + number, count)
        found[0][item] = value - found[1][item]
    return found


def select(gate, values, masks, bits, hidden):
    """The sum of the parties' shares of what is selected."""
    opened = (np.stack(values) + np.stack(masks)) & ones(gate.width)
    shares = shared(gate, masks, hidden)
    index = (np.stack(bits) ^ np.stack(hidden)).astype(np.uint8)
    sides = [selected(gate, party, opened, index, shares[party].__getitem__) for party in (0, 1)]
    return [(a + b) & ones(gate.result_width) for a, b in zip(*sides, strict=True)]


def every(*sizes):
    """All combinations of numbers below these sizes, (count,) each."""
    return np.indices(sizes, dtype=np.uint32).reshape(len(sizes), -1)


@pytest.mark.parametrize("payloads", [1, 2])
def test_every_value_mask_bit_and_hidden_bit_of_two_ways(payloads):
    gate = Gate("max", 1, 3, payloads=payloads)
    y, r, b, c = every(8, 8, 2, 2)
    second = (y * 5 + 1) % 8
    values, masks = [y, second][:payloads], [r, (3 * r + y) % 8][:payloads]
    found = select(gate, values, masks, [b], [c])
    for result, value in zip(found, values, strict=True):
        np.testing.assert_array_equal(result, b * value)


def test_every_value_mask_bit_and_hidden_bit_of_three_ways():
    """Whatever the bits are, consistent or not: one of u, v and 0 is selected."""
    gate = Gate("max", 1, 3, ways=3)
    u, v, ru, rv, *rest = every(8, 8, 8, 8, 2, 2, 2, 2, 2, 2)
    (p, q, s), hidden = rest[:3], rest[3:]
    (found,) = select(gate, [u, v], [ru, rv], [p, q, s], hidden)
    np.testing.assert_array_equal(found, np.where(s, p * u, q * v))


@pytest.mark.parametrize("widen", [False, True])
def test_every_value_and_bit_of_four_ways_under_many_masks(widen):
    """Bits of values that a gate may select: of negative ones their own is 0 where it widens."""
    gate = Gate("max", 1, 4, widen, ways=4)
    u, v, w, *bits = every(8, 8, 8, *[2] * 6)
    if not widen:
        u, v, w = (16 - u) % 16, v, (w + 5) % 16
    for number in range(6):
        masks = [words(700 + 10 * number + lane, len(u), 4) for lane in range(3)]
        hidden = [words(800 + 10 * number + bit, len(u), 1) for bit in range(6)]
        (found,) = select(gate, [u, v, w], masks, bits, hidden)
        p, q, t, s, x, y = bits
        wanted = p * s * x * u + q * (1 - s) * y * v + t * (1 - x) * (1 - y) * w
        np.testing.assert_array_equal(found, wanted & ones(gate.result_width))


def test_a_second_payload_follows_the_bits_of_the_first():
    gate = Gate("label", 1, 3, payloads=2, ways=3)
    u, ru, *rest = every(8, 8, 2, 2, 2, 2, 2, 2)
    (p, q, s), hidden = rest[:3], rest[3:]
    values = [u, (u + 3) % 8, (u * 3) % 8, (u + 6) % 8]
    masks = [ru, (ru * 5) % 8, (ru + u) % 8, (7 * ru + 1) % 8]
    first, second = select(gate, values, masks, [p, q, s], hidden)
    np.testing.assert_array_equal(first, np.where(s, p * values[0], q * values[1]))
    np.testing.assert_array_equal(second, np.where(s, p * values[2], q * values[3]))


def test_every_positive_value_of_a_small_ring_is_widened():
    """A negative one is never selected; of the others the wrapped sum is put right."""
    gate = Gate("relu", 1, 4, widen=True)
    y, r, c = every(16, 16, 2)
    positive = (y < 8).astype(np.uint32)
    (found,) = select(gate, [y], [r], [positive], [c])
    np.testing.assert_array_equal(found, positive * y)


def test_a_coarse_gate_widens_small_negative_values_too():
    """Every value that it may select, down to half a coarse bit below zero."""
    gate = Gate("relu", 1, 5, widen=True, coarse=3)
    y, r, c = every(32, 32, 2)
    value = (y.astype(np.int32) + gate.centre) % 32 - gate.centre  # from -4 on
    chosen = value < 16 - gate.centre
    (found,) = select(gate, [y], [r], [chosen.astype(np.uint32)], [c])
    np.testing.assert_array_equal(found.view(np.int32), np.where(chosen, value, 0))


def test_three_ways_compare_the_difference_of_what_is_opened():
    u, v = np.array([5, 1], np.uint32), np.array([3, 2], np.uint32)
    lanes = compared_lanes(Gate("max", 2, ways=3, payloads=2), [u, v, v, u])
    assert [lane.view(np.int32).tolist() for lane in lanes] == [[5, 1], [3, 2], [2, -1]]
    assert compared_lanes(Gate("max", 2, payloads=2), [u, v]) == (u,)
    lanes = compared_lanes(Gate("max", 2, ways=4), [u, v, u + v])
    assert [lane.view(np.int32).tolist() for lane in lanes[3:]] == [[2, -1], [-3, -2], [-5, -1]]


@pytest.mark.parametrize(
    ("gate", "to_p0", "to_p1"),
    [
        (Gate("relu", 1, 17, widen=True), 2, 3),
        (Gate("max", 1, 17), 1, 1),
        (Gate("label", 1, payloads=2), 1, 2),
        (Gate("max", 1, 17, ways=3), 5, 6),
        (Gate("label", 1, payloads=2, ways=3), 8, 9),
        (Gate("pool", 1, 17, widen=True, ways=3), 10, 11),
        (Gate("pool", 1, 17, widen=True, ways=4), 33, 33),
    ],
)
def test_what_is_dealt_for_a_result(gate, to_p0, to_p1):
    """Every item to one party; r, which P1 knows beforehand, never to P1."""
    items = corrections(gate)
    assert len(items) == len(set(items)) == to_p0 + to_p1
    assert {*dealt(gate, 0), *dealt(gate, 1)} == set(items)
    assert (len(dealt(gate, 0)), len(dealt(gate, 1))) == (to_p0, to_p1)
    assert not any(item.name == "r" for item in dealt(gate, 1))
