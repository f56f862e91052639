"""The node's state machine: each step once, in order, repeatable, and never both kinds of share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primia.aggregation import client
from primia.aggregation.envelopes import Kind
from primia.aggregation.errors import BelowThreshold, InconsistentRound, InvalidUpdate
from primia.aggregation.state import TRANSITIONS, NodeState, Phase, Step
from primia.aggregation.survivors import Outcome, Reveal
from primia.errors import MalformedMessage, PrimiaError, UnexpectedMessage
from tests.primia.aggregation.federation import Federation, identity, names, random_update, verify

START = Federation.of(3)
ADVERTISED = START.advertise()
SHARED = ADVERTISED.share()
MASKED = SHARED.mask()
CONFIRMED = MASKED.confirm()
REVEALED = CONFIRMED.reveal()
ALICE, BOB, CAROL = names(3)
STATES = [each.states[BOB] for each in (ADVERTISED, SHARED, MASKED, CONFIRMED, REVEALED)]

STEPS: dict[Step, Callable[[NodeState], object]] = {
    Step.SHARE: lambda state: client.share(state, ADVERTISED.advertisements, verify),
    Step.MASK: lambda state: client.mask(state, SHARED.inbox(BOB), START.updates[BOB]),
    Step.CONFIRM: lambda state: client.confirm(state, names(3), identity(BOB).sign),
    Step.REVEAL: lambda state: client.reveal(state, names(3), CONFIRMED.confirmations, verify),
}


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("step", list(Step))
def test_each_step_is_taken_in_its_phase_repeated_later_and_refused_earlier(
    phase: Phase, step: Step
) -> None:
    state = STATES[phase]
    assert state.phase is phase
    if step > phase:
        assert (phase, step) not in TRANSITIONS
        with pytest.raises(UnexpectedMessage, match=f"cannot {step.name.lower()} now"):
            STEPS[step](state)
        return
    after, answer = STEPS[step](state)  # type: ignore[misc]  # (state, answer), as every step
    assert after.phase is max(TRANSITIONS[Phase(step), step], phase)
    expected = (SHARED.envelopes, MASKED.vectors, CONFIRMED.confirmations, REVEALED.reveals)[step]
    assert np.array_equal(answer, expected[BOB])
    assert after.to_bytes() == (STATES[phase + 1] if step == phase else state).to_bytes()


def test_the_table_is_a_line() -> None:
    assert [TRANSITIONS[Phase(at), Step(at)] for at in range(4)] == list(Phase)[1:]
    assert len(TRANSITIONS) == 4


def test_another_roster_is_refused_once_shares_were_dealt() -> None:
    fewer = {node: ADVERTISED.advertisements[node] for node in (ALICE, BOB)}
    with pytest.raises(UnexpectedMessage, match="answered another share request"):
        client.share(SHARED.states[BOB], fewer, verify)


def test_another_update_or_other_members_are_refused_once_masked() -> None:
    """The difference of two vectors under one mask would be the difference of two updates."""
    with pytest.raises(UnexpectedMessage, match="answered another mask request"):
        client.mask(MASKED.states[BOB], SHARED.inbox(BOB), START.updates[BOB] * np.float32(0.5))
    fewer = {node: SHARED.inbox(BOB)[node] for node in (ALICE, BOB)}
    with pytest.raises(UnexpectedMessage, match="answered another mask request"):
        client.mask(MASKED.states[BOB], fewer, START.updates[BOB])


def test_other_survivors_are_refused_once_confirmed_or_revealed() -> None:
    for state in (CONFIRMED.states[BOB], REVEALED.states[BOB]):
        with pytest.raises(UnexpectedMessage, match="answered another confirm request"):
            client.confirm(state, [ALICE, BOB], identity(BOB).sign)
    with pytest.raises(UnexpectedMessage, match="confirmed another survivor set"):
        client.reveal(CONFIRMED.states[BOB], [ALICE, BOB], CONFIRMED.confirmations, verify)
    with pytest.raises(UnexpectedMessage, match="answered another reveal request"):
        client.reveal(REVEALED.states[BOB], [ALICE, BOB], CONFIRMED.confirmations, verify)


def test_an_error_leaves_the_state_usable() -> None:
    state = SHARED.states[BOB]
    before = state.to_bytes()
    with pytest.raises(InvalidUpdate):
        client.mask(state, SHARED.inbox(BOB), np.full(43, np.nan, dtype=np.float32))
    assert state.to_bytes() == before
    _, vector = client.mask(state, SHARED.inbox(BOB), START.updates[BOB])
    assert np.array_equal(vector, MASKED.vectors[BOB])


def test_an_update_other_than_the_advertised_is_refused_if_it_exceeds_the_bound() -> None:
    with pytest.raises(InvalidUpdate, match="exceeds the round's bound"):
        client.mask(SHARED.states[BOB], SHARED.inbox(BOB), START.updates[BOB] * np.float32(64))


def test_masking_in_place_gives_the_same_vector() -> None:
    update = START.updates[BOB].copy()
    _, vector = client.mask(
        SHARED.states[BOB], SHARED.inbox(BOB), update, out=update.view(np.uint32)
    )
    assert vector.base is update
    assert np.array_equal(vector, MASKED.vectors[BOB])


def subsets(nodes: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [each for size in range(len(nodes) + 1) for each in combinations(nodes, size)]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_node_never_reveals_both_kinds_of_share(count: int) -> None:
    """Whatever an owner asks of a node, in whatever order: all shares that it ever gives out of one
    dealer are of one kind. Every sequence of two confirms and two reveals is tried, with the best
    confirmations that an owner could have obtained of the other nodes for either set."""
    start = Federation.of(count).advertise().share().mask()
    node, roster = names(count)[0], start.roster
    for first in subsets(start.nodes):
        for second in subsets(start.nodes):
            state, given = start.states[node], set[tuple[str, Kind, bytes]]()
            for survivors in (first, second):
                with contextlib.suppress(PrimiaError):
                    state, _ = client.confirm(state, survivors, identity(node).sign)
                for asked in (first, second):
                    with contextlib.suppress(PrimiaError):
                        outcome = Outcome.of(roster, start.nodes, asked)
                        signed = outcome.signed_bytes(roster)
                        confirmations = {n: identity(n).sign(signed) for n in start.nodes}
                        state, data = client.reveal(state, asked, confirmations, verify)
                        given |= entries(data)
            dealers = [dealer for dealer, _, _ in given]
            assert len(dealers) == len(set(dealers))
            assert len(dealers) in (0, count)


def entries(data: bytes) -> set[tuple[str, Kind, bytes]]:
    shares = Reveal.parse(data).shares
    return {(dealer, kind, share.to_bytes()) for dealer, (kind, share) in shares.items()}


def test_the_kind_of_share_follows_the_survivors() -> None:
    dropped = replace(MASKED, vectors={n: MASKED.vectors[n] for n in (ALICE, BOB)})
    reveals = dropped.confirm().reveal().reveals
    for data in reveals.values():
        kinds = {dealer: kind for dealer, (kind, _) in Reveal.parse(data).shares.items()}
        assert kinds == {
            ALICE: Kind.SELF_MASK,
            BOB: Kind.SELF_MASK,
            CAROL: Kind.MASKING_KEY,
        }


def test_a_node_checks_its_own_presence() -> None:
    with pytest.raises(InconsistentRound, match=f"{BOB} is not in the round's roster"):
        client.share(
            ADVERTISED.states[BOB],
            {node: ADVERTISED.advertisements[node] for node in (ALICE, CAROL)},
            verify,
        )
    inbox = {dealer: SHARED.inbox(BOB)[dealer] for dealer in (ALICE, CAROL)}
    with pytest.raises(InconsistentRound, match=f"{BOB} itself is not among the members"):
        client.mask(SHARED.states[BOB], inbox, START.updates[BOB])
    with pytest.raises(InconsistentRound, match=f"{BOB} itself is not among the survivors"):
        client.confirm(MASKED.states[BOB], [ALICE, CAROL], identity(BOB).sign)


def test_sets_below_the_threshold_are_refused() -> None:
    with pytest.raises(BelowThreshold):
        client.share(ADVERTISED.states[BOB], {BOB: ADVERTISED.advertisements[BOB]}, verify)
    with pytest.raises(BelowThreshold):
        client.mask(SHARED.states[BOB], {BOB: SHARED.inbox(BOB)[BOB]}, START.updates[BOB])
    with pytest.raises(BelowThreshold):
        client.confirm(MASKED.states[BOB], [BOB], identity(BOB).sign)
    confirmations = {BOB: CONFIRMED.confirmations[BOB]}
    with pytest.raises(BelowThreshold, match="1 valid confirmations"):
        client.reveal(CONFIRMED.states[BOB], names(3), confirmations, verify)


def test_nodes_named_twice_are_refused() -> None:
    with pytest.raises(InconsistentRound, match="distinct"):
        client.confirm(MASKED.states[BOB], [ALICE, BOB, BOB], identity(BOB).sign)


# --- the stored state ---


@pytest.mark.parametrize("phase", list(Phase))
def test_a_state_survives_its_bytes_and_prints_nothing_secret(phase: Phase) -> None:
    state = STATES[phase]
    data = state.to_bytes()
    again = NodeState.from_bytes(data)
    assert again == state
    assert again.to_bytes() == data
    assert state.secrets.seed.reveal() in data
    assert state.secrets.seed.reveal().hex() not in repr(state)
    assert repr(state.secrets.seed.reveal()) not in repr(state)


@pytest.mark.parametrize("phase", list(Phase))
def test_truncated_or_extended_states_are_refused(phase: Phase) -> None:
    data = STATES[phase].to_bytes()
    for size in range(0, len(data), 7):
        with pytest.raises(MalformedMessage):
            NodeState.from_bytes(data[:size])
    with pytest.raises(MalformedMessage):
        NodeState.from_bytes(data + b"\0")


@settings(max_examples=200)
@given(st.sampled_from(STATES), st.integers(0, 10_000), st.integers(1, 255))
def test_altered_states_parse_or_are_refused(state: NodeState, at: int, change: int) -> None:
    data = bytearray(state.to_bytes())
    data[at % len(data)] ^= change
    with contextlib.suppress(MalformedMessage):
        NodeState.from_bytes(bytes(data))


@given(st.binary(max_size=80))
def test_arbitrary_bytes_are_no_state(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        NodeState.from_bytes(data)
    with pytest.raises(MalformedMessage):
        NodeState.from_bytes(b"PGN1" + data)


def test_a_node_can_crash_after_every_step() -> None:
    """The federation stores and loads every state after every step; a node that lost the answer but
    not the old state gives it again."""
    lost = replace(MASKED, states={**MASKED.states, BOB: SHARED.states[BOB]}).mask([BOB])
    assert np.array_equal(lost.vectors[BOB], MASKED.vectors[BOB])
    assert lost.states[BOB].to_bytes() == MASKED.states[BOB].to_bytes()


def test_two_rounds_of_one_update_share_no_word() -> None:
    again = Federation.of(3, seeds={n: seed.derive("another") for n, seed in START.seeds.items()})
    other = again.advertise().share().mask().vectors[BOB]
    assert not np.any(other == MASKED.vectors[BOB])
    assert np.array_equal(random_update(1), START.updates[BOB])
