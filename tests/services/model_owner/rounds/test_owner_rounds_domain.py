"""The transition tables, exhaustively, and what is decided from them."""

from __future__ import annotations

import itertools

import pytest
from pydantic import ValidationError

from primia.errors import Conflict, InvalidInput
from primia.messages.rounds import AggregationSettings, SparseGraph
from services.model_owner.rounds.domain import (
    ACTIVE,
    CLOSED,
    ENDED,
    PLAIN_ORDER,
    PLAIN_STEPS,
    RUN_TRANSITIONS,
    SECURE_ORDER,
    SECURE_STEPS,
    SITE_TRANSITIONS,
    Abandon,
    Advance,
    Member,
    Stage,
    Wait,
    absorbable,
    at_least,
    drawn,
    following,
    move_phase,
    move_run,
    move_site,
    resolve_graph,
    resolve_threshold,
    settle,
    stage_after,
    step_of,
    wanted_in_round,
    wanted_kind,
)

PHASES = (*SECURE_ORDER, "abandoned")
RUN_MOVES = {
    ("reviewing", "running"),
    ("reviewing", "evaluating"),  # of no rounds
    ("reviewing", "failed"),
    ("reviewing", "cancelled"),
    ("running", "evaluating"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("evaluating", "finished"),
    ("evaluating", "failed"),
    ("evaluating", "cancelled"),
}


def test_run_states_move_as_the_table_says_and_no_other_way():
    for present, wanted in itertools.product(RUN_TRANSITIONS, repeat=2):
        if (present, wanted) in RUN_MOVES:
            assert move_run(present, wanted) == wanted
        else:
            with pytest.raises(Conflict, match=present):
                move_run(present, wanted)


def test_ended_and_active_runs_are_all_runs():
    assert {"finished", "failed", "cancelled"} == ENDED
    assert set(RUN_TRANSITIONS) == ENDED | ACTIVE
    assert not ENDED & ACTIVE


def test_a_site_answers_once():
    for present, wanted in itertools.product(SITE_TRANSITIONS, repeat=2):
        if present == "invited" and wanted != "invited":
            assert move_site(present, wanted) == wanted
        else:
            with pytest.raises(Conflict):
                move_site(present, wanted)


@pytest.mark.parametrize(("secure", "order"), [(True, SECURE_ORDER), (False, PLAIN_ORDER)])
def test_phases_go_forwards_by_one_or_are_abandoned(secure, order):
    for present, wanted in itertools.product(PHASES, repeat=2):
        known = present in order[:-1]
        allowed = present not in CLOSED and (
            wanted == "abandoned" or (known and wanted == order[order.index(present) + 1])
        )
        if allowed:
            assert move_phase(present, wanted, secure=secure) == wanted
        else:
            with pytest.raises(Conflict):
                move_phase(present, wanted, secure=secure)


@pytest.mark.parametrize(("secure", "order"), [(True, SECURE_ORDER), (False, PLAIN_ORDER)])
def test_every_phase_has_one_follower(secure, order):
    assert [following(phase, secure=secure) for phase in order[:-1]] == list(order[1:])
    for last in CLOSED:
        with pytest.raises(Conflict):
            following(last, secure=secure)


@pytest.mark.parametrize(
    ("steps", "order"), [(SECURE_STEPS, SECURE_ORDER), (PLAIN_STEPS, PLAIN_ORDER)]
)
def test_the_steps_chain_from_asked_to_the_last_stage(steps, order):
    chained = [steps[phase] for phase in order if phase in steps]
    assert set(steps) == set(order) - {"opening", "done"}
    assert chained[0].before == Stage.ASKED
    for one, other in itertools.pairwise(chained):
        assert one.after == other.before
    assert chained[-1].after == (Stage.REVEALED if steps is SECURE_STEPS else Stage.ABSORBED)
    for step in chained:
        assert (step.kind is None) == (step.timeout is None)


def members(**stages: Stage | tuple[Stage, bool]) -> list[Member]:
    return [
        Member(name, *(value if isinstance(value, tuple) else (value,)))
        for name, value in stages.items()
    ]


def all_members(step, size: int):
    """Every mix of members that have answered, have not, or have dropped out."""
    kinds = [(step.before, False), (step.before, True), (step.after, False), (step.after, True)]
    for mix in itertools.product(kinds, repeat=size):
        yield [Member(f"n{i}", stage, dropped) for i, (stage, dropped) in enumerate(mix)]


@pytest.mark.parametrize("phase", SECURE_STEPS)
@pytest.mark.parametrize("expired", [False, True])
def test_a_phase_ends_when_nobody_is_awaited_and_enough_came_through(phase, expired):
    step = SECURE_STEPS[phase]
    for some in all_members(step, 4):
        ready = sum(member.stage == step.after for member in some)
        awaited = [
            member.node
            for member in some
            if member.stage == step.before and (step.kind is None or not member.dropped)
        ]
        late = awaited if expired and step.timeout else []
        hoped = len(awaited) - len(late)
        for needed in range(1, 5):
            verdict = settle(step, some, needed, expired=expired)
            if ready + hoped < needed:
                assert isinstance(verdict, Abandon)
                assert str(needed) in verdict.reason
            elif hoped:
                assert verdict == Wait()
            else:
                assert verdict == Advance(tuple(late))
            assert getattr(verdict, "silent", ()) == tuple(late)


def test_a_plain_sum_waits_for_earlier_names_and_a_masked_one_for_nobody():
    some = members(c=Stage.UPLOADED, b=Stage.TRAINED, a=Stage.ABSORBED)
    assert absorbable(some, secure=False) == ()
    assert absorbable(some, secure=True) == ("c",)
    untrained = members(c=Stage.UPLOADED, b=Stage.ASKED, a=Stage.UPLOADED)
    assert absorbable(untrained, secure=False) == ("a",)
    all_there = members(c=Stage.UPLOADED, b=Stage.UPLOADED, a=Stage.ABSORBED)
    assert absorbable(all_there, secure=False) == ("b", "c")
    without_b = members(c=Stage.UPLOADED, b=(Stage.TRAINED, True), a=(Stage.UPLOADED, True))
    assert absorbable(without_b, secure=False) == ("a", "c")


def test_the_worker_is_never_late_and_takes_what_dropped_nodes_left():
    step = SECURE_STEPS["absorbing"]
    some = members(a=Stage.ABSORBED, b=(Stage.UPLOADED, True))
    assert settle(step, some, 1, expired=True) == Wait()


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("secure", [True, False])
def test_a_round_wants_one_item_of_a_node_at_the_right_stage(phase, secure):
    step = step_of(phase, secure=secure)
    for stage, dropped in itertools.product(Stage, (False, True)):
        wanted = wanted_in_round(phase, "n", [Member("n", stage, dropped)], secure=secure)
        fits = step is not None and stage == step.before and not dropped
        early = (phase, secure, stage, dropped) == ("training", False, Stage.TRAINED, False)
        assert wanted == ("upload" if early else step.kind if fits else None)
    assert wanted_in_round(phase, "stranger", members(n=Stage.ASKED), secure=secure) is None


def test_an_answer_takes_its_node_to_the_stage_behind_its_item():
    assert stage_after("train", "training", secure=False) == Stage.TRAINED
    assert stage_after("upload", "training", secure=False) == Stage.UPLOADED
    assert stage_after("upload", "uploading", secure=True) == Stage.UPLOADED
    assert stage_after("unmask", "unmasking", secure=True) == Stage.REVEALED
    with pytest.raises(Conflict):
        stage_after("train", "opening", secure=False)


WANTED = {
    ("reviewing", "invited", False): "review",
    ("reviewing", "invited", True): "review",
    ("evaluating", "accepted", False): "evaluate",
} | {(state, site, False): "stop" for state in ENDED for site in ("invited", "accepted", "silent")}


def test_outside_of_rounds_a_node_is_asked_what_the_table_says():
    for state, site, answered in itertools.product(
        RUN_TRANSITIONS, SITE_TRANSITIONS, (False, True)
    ):
        wanted = wanted_kind(state, site, answered=answered)
        assert wanted == WANTED.get((state, site, answered))


def test_at_least_sorts_and_counts_dropped_members():
    some = members(b=Stage.ABSORBED, a=(Stage.CONFIRMED, True), c=Stage.UPLOADED)
    assert at_least(some, Stage.ABSORBED) == ("a", "b")


def settings(threshold, minimum, secure) -> AggregationSettings:
    return AggregationSettings(secure=secure, threshold=threshold, minimum_nodes=minimum)


def test_large_rounds_have_a_sparse_graph():
    auto = AggregationSettings()
    assert [resolve_graph(auto, n) for n in (3, 50)] == [None, None]
    assert resolve_graph(auto, 100) == auto.sparse
    assert resolve_graph(AggregationSettings(graph="complete"), 100) is None
    assert resolve_graph(AggregationSettings(secure=False), 100) is None
    distrustful = AggregationSettings(sparse=SparseGraph(colluding=0.3, lost=0.2))
    assert resolve_graph(distrustful, 100) is None  # it would not halve the work


def test_a_sparse_graph_that_few_sites_cannot_have_is_refused():
    asked = AggregationSettings(graph="sparse")
    assert resolve_graph(asked, 24) == asked.sparse
    with pytest.raises(InvalidInput, match="all others as neighbours"):
        resolve_graph(asked, 4)


def test_colluding_sites_raise_the_threshold_of_a_sparse_round():
    asked = AggregationSettings(graph="sparse")
    assert resolve_threshold(100, asked, asked.sparse) == 56
    with pytest.raises(InvalidInput, match="does not suit"):
        resolve_threshold(100, AggregationSettings(threshold=51), asked.sparse)


def test_a_secure_threshold_is_more_than_half():
    assert [resolve_threshold(n, settings(None, 1, True)) for n in (2, 3, 4, 5, 100)] == [
        2,
        2,
        3,
        3,
        51,
    ]
    for nodes in range(2, 8):
        for asked in range(1, 9):
            if 2 * asked > nodes and 2 <= asked <= nodes:
                assert resolve_threshold(nodes, settings(asked, 1, True)) == asked
            else:
                with pytest.raises((InvalidInput, ValidationError)):  # one node is never asked
                    resolve_threshold(nodes, settings(asked, 1, True))


def test_a_plain_minimum_is_at_most_all_nodes():
    assert resolve_threshold(3, settings(None, 1, False)) == 1
    assert resolve_threshold(3, settings(2, 3, False)) == 3
    with pytest.raises(InvalidInput, match="minimum_nodes is 4"):
        resolve_threshold(3, settings(None, 4, False))


def test_sites_are_drawn_anew_each_round_and_the_same_again():
    nodes = [f"node-{letter}" for letter in "abcde"]
    draws = [drawn(nodes, 3, 7, number) for number in range(200)]
    assert draws == [drawn(nodes[::-1], 3, 7, number) for number in range(200)]
    assert all(len(set(draw)) == 3 and list(draw) == sorted(draw) for draw in draws)
    counts = [sum(node in draw for draw in draws) for node in nodes]
    assert min(counts) > 90  # of 120 expected
    assert draws != [drawn(nodes, 3, 8, number) for number in range(200)]


def test_all_sites_where_none_are_left_over():
    assert drawn(["b", "a"], None, 0, 1) == drawn(["b", "a"], 5, 0, 1) == ("a", "b")
