"""Integers under masks in Z_2^64: the opened sum is exact, whoever drops out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from primia.aggregation import client, server
from primia.aggregation.errors import InvalidUpdate
from primia.aggregation.integers import largest_integer
from primia.aggregation.roster import Roster
from primia.aggregation.survivors import Outcome
from primia.aggregation.terms import Groups
from primia.aggregation.wire import Header, Kind, frame, parse_frame
from primia.errors import UnexpectedMessage
from primia.prg import Seed
from tests.primia.aggregation.federation import FIRST, Federation, identity, names, verify

COUNT = 9


def values(node: str) -> np.ndarray:
    generator = np.random.default_rng(list(node.encode()))  # seeded test data
    found = generator.integers(0, largest_integer(4), COUNT, dtype=np.uint64, endpoint=True)
    found[:2] = 0, largest_integer(4)
    return found


def shared(nodes: tuple[str, ...]):
    """States after round 1, the roster and the envelopes."""
    states, advertisements, envelopes = {}, {}, {}
    for node in nodes:
        states[node], advertisements[node] = client.advertise(
            Seed.fresh(),
            round_id=FIRST,
            node=node,
            threshold=3,
            samples=1,
            groups=Groups(COUNT, 0),
            exponents=(0, 0),
            sign=identity(node).sign,
        )
    for node in nodes:
        states[node], envelopes[node] = client.share(states[node], advertisements, verify)
    return states, Roster.of(advertisements, verify), envelopes


@pytest.mark.parametrize("lost", [(), ("site-02",)], ids=["all", "one lost"])
def test_the_opened_sum_is_the_sum_of_the_integers(lost: tuple[str, ...]) -> None:
    nodes = names(4)
    states, roster, envelopes = shared(nodes)
    survivors = tuple(node for node in nodes if node not in lost)
    header = Header(Kind.INTEGERS, FIRST, COUNT)
    total = server.RunningSum(COUNT, kind=Kind.INTEGERS)
    for node in nodes:
        inbox = server.inbox(envelopes, node)
        states[node], vector = client.mask_integers(states[node], inbox, values(node))
        again, same = client.mask_integers(states[node], inbox, values(node))
        assert again == states[node]
        assert np.array_equal(same, vector)
        data = b"".join(frame(header, vector))
        assert len(data) == header.frame_bytes == 36 + 8 * COUNT
        assert not np.array_equal(vector, values(node))
        if node in survivors:
            total.add(parse_frame(data, header))
    outcome = Outcome.of(roster, envelopes, survivors)
    confirmations = {}
    for node in survivors:
        states[node], confirmations[node] = client.confirm(
            states[node], survivors, identity(node).sign
        )
    reveals = {
        node: client.reveal(states[node], survivors, confirmations, verify)[1] for node in survivors
    }
    opened = server.unmask(total.total, roster, envelopes, outcome, reveals)
    exact = [sum(int(values(node)[i]) for node in survivors) for i in range(COUNT)]
    assert [int(value) for value in opened] == exact


def test_values_that_could_overflow_are_refused() -> None:
    states, _, envelopes = shared(names(4))
    inbox = server.inbox(envelopes, "site-00")
    for bad in (
        np.full(COUNT, largest_integer(4) + 1, dtype=np.uint64),
        np.zeros(COUNT + 1, dtype=np.uint64),
        np.zeros(COUNT, dtype=np.int64),
    ):
        with pytest.raises(InvalidUpdate):
            client.mask_integers(states["site-00"], inbox, bad)


@pytest.mark.parametrize("lost", [(), ("site-02",)], ids=["all", "one lost"])
def test_integers_beside_updates_are_opened_by_the_same_reveals(lost: tuple[str, ...]) -> None:
    federation = Federation.of(4).advertise().share()
    survivors = tuple(node for node in federation.nodes if node not in lost)
    states, vectors, beside = dict(federation.states), {}, np.zeros(COUNT, dtype=np.uint64)
    for node in survivors:
        arguments = (federation.inbox(node), federation.updates[node], values(node))
        states[node], vectors[node], masked = client.mask_both(states[node], *arguments)
        again, *same = client.mask_both(states[node], *arguments)
        assert again == states[node]
        assert np.array_equal(same[0], vectors[node])
        assert np.array_equal(same[1], masked)
        assert not (masked == values(node)).any()
        beside += masked
    federation = replace(federation, states=states, vectors=vectors).confirm().reveal()
    np.testing.assert_allclose(federation.open(), federation.expected(), atol=1e-6)
    roster, outcome = federation.roster, federation.outcome
    recovered = server.recover(roster, federation.envelopes, outcome, federation.reveals)
    server.remove_masks_beside(beside, roster, outcome, recovered)
    exact = [sum(int(values(node)[i]) for node in survivors) for i in range(COUNT)]
    assert [int(value) for value in beside] == exact


def test_other_integers_beside_the_same_update_are_refused() -> None:
    """Two vectors under one mask would tell their difference."""
    federation = Federation.of(3).advertise().share()
    node = federation.nodes[0]
    inbox, update = federation.inbox(node), federation.updates[node]
    state, _, _ = client.mask_both(federation.states[node], inbox, update, values(node))
    with pytest.raises(UnexpectedMessage, match="answered another mask"):
        client.mask_both(state, inbox, update, values(node) // np.uint64(2))
    with pytest.raises(UnexpectedMessage, match="answered another mask"):
        client.mask(state, inbox, update)


def test_the_masks_beside_an_update_are_streams_of_their_own() -> None:
    federation = Federation.of(3).advertise().share()
    node = federation.nodes[0]
    nothing = np.zeros(federation.groups.size, dtype=np.float32)
    zeros = np.zeros(federation.groups.size // 2, dtype=np.uint64)
    _, vector, beside = client.mask_both(
        federation.states[node], federation.inbox(node), nothing, zeros
    )
    assert not (vector[: 2 * len(beside)] == beside.view(np.uint32)).any()


def test_integers_beside_an_update_that_could_overflow_are_refused() -> None:
    federation = Federation.of(3).advertise().share()
    node = federation.nodes[0]
    large = np.array([0, largest_integer(3) + 1], dtype=np.uint64)
    with pytest.raises(InvalidUpdate, match="index 1 is too large"):
        client.mask_both(
            federation.states[node], federation.inbox(node), federation.updates[node], large
        )
