"""Noise inside the sum: as much as is accounted for, from every node its part, and no overflow."""

from __future__ import annotations

import math

import numpy as np
import pytest

from primia.aggregation import client, server
from primia.aggregation.central import clip, deviation, exponent
from primia.aggregation.errors import InvalidUpdate
from primia.aggregation.quantise import fraction_bits
from primia.aggregation.roster import Roster
from primia.aggregation.terms import Groups
from primia.aggregation.wire import Kind
from primia.errors import InvalidInput
from primia.prg import Seed
from tests.primia.aggregation.federation import FIRST, identity, names, verify

VALUES, NODES, THRESHOLD = 4000, 4, 3
NORM, MULTIPLIER = 2.0, 1.5


def opened(updates: dict[str, np.ndarray]) -> np.ndarray:
    """The mean over all nodes of one round with noise, decoded."""
    states, advertisements, envelopes = {}, {}, {}
    common = exponent(NORM, MULTIPLIER, THRESHOLD)
    for node in updates:
        states[node], advertisements[node] = client.advertise(
            Seed.fresh(),
            round_id=FIRST,
            node=node,
            threshold=THRESHOLD,
            samples=1,
            groups=Groups(VALUES, 0),
            exponents=(common, common),
            sign=identity(node).sign,
        )
    for node in updates:
        states[node], envelopes[node] = client.share(states[node], advertisements, verify)
    roster = Roster.of(advertisements, verify)
    sigma = deviation(NORM, MULTIPLIER, values=VALUES, nodes=NODES, threshold=THRESHOLD)
    total = server.RunningSum(VALUES, kind=Kind.MASKED)
    for node, update in updates.items():
        inbox = server.inbox(envelopes, node)
        after, vector = client.mask(states[node], inbox, update, noise=sigma)
        again, same = client.mask(after, inbox, update, noise=sigma)  # after a crash
        assert again == after
        assert np.array_equal(vector, same)
        total.add(vector)
        states[node] = after
    confirmations = {}
    for node in updates:
        states[node], confirmations[node] = client.confirm(
            states[node], updates, identity(node).sign
        )
    reveals = {n: client.reveal(states[n], updates, confirmations, verify)[1] for n in updates}
    outcome = server.Outcome.of(roster, envelopes, updates)
    server.unmask(total.total, roster, envelopes, outcome, reveals)
    return server.mean(total.total, roster, outcome)


def test_the_sum_has_the_noise_that_is_accounted_for() -> None:
    nothing = {node: np.zeros(VALUES, np.float32) for node in names(NODES)}
    noise = opened(nothing)
    # At least MULTIPLIER clip norms of one node's part, 1/n of the mean; more by the nodes above
    # the threshold.
    least = MULTIPLIER * NORM / NODES
    assert noise.std() == pytest.approx(least * math.sqrt(NODES / THRESHOLD), rel=0.1)
    assert not np.array_equal(noise, opened(nothing))


def test_the_mean_is_right_up_to_the_noise_where_all_lies_in_one_value() -> None:
    spike = np.zeros(VALUES, np.float32)
    spike[7] = NORM
    mean = opened({node: clip(spike * 50, NORM) for node in names(NODES)})
    assert mean[7] == pytest.approx(NORM, abs=6 * MULTIPLIER * NORM / NODES)


@pytest.mark.parametrize("multiplier", [0.05, 1.0, 100.0])
@pytest.mark.parametrize(("nodes", "threshold"), [(2, 2), (3, 2), (250, 126)])
def test_nothing_can_overflow(nodes: int, threshold: int, multiplier: float) -> None:
    """Even if every node's noise were as far out as a rounded normal gets (8.6 deviations)."""
    values = 11_200_000
    scale = 2.0 ** fraction_bits(exponent(NORM, multiplier, threshold))
    noise = deviation(NORM, multiplier, values=values, nodes=nodes, threshold=threshold)
    assert NORM * scale + nodes / 2 + nodes * 8.6 * noise < 2**31
    assert noise > 100  # rounding is nothing beside it
    one_node = NORM * scale / nodes + math.sqrt(values) / 2
    assert noise * math.sqrt(threshold) >= multiplier * one_node * (1 - 1e-12)


def test_updates_are_clipped_whole() -> None:
    update = np.array([3.0, -4.0], np.float32)
    clipped = clip(update, 1.0)
    assert clipped == pytest.approx([0.6, -0.8], rel=1e-5)
    assert np.linalg.norm(clipped.astype(np.float64)) <= 1.0
    assert np.array_equal(clip(update, 5.1), update)
    assert not clip(np.zeros(3, np.float32), 1.0).any()
    for bad in (np.nan, np.inf):
        with pytest.raises(InvalidUpdate, match="not finite"):
            clip(np.array([1.0, bad], np.float32), 1.0)
    with pytest.raises(InvalidInput, match="does not fit"):
        exponent(1e13, 1.0, 2)
