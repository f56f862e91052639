"""Rounds in which a node has some neighbours only: the graph, its numbers, and what they carry."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, hypergeom

from primia.aggregation import client, server
from primia.aggregation.errors import BelowThreshold, InconsistentRound
from primia.aggregation.graph import DELIVERY_BITS, SECRECY_BITS, Degree, Graph, degree
from primia.aggregation.roster import Roster
from primia.aggregation.terms import Assumed, check_threshold, least_threshold
from primia.errors import InvalidInput
from tests.primia.aggregation.federation import Federation, identity, names, verify

COUNT = 24
ASSUMED = Assumed(colluding=2, lost=2)


@cache
def advertised() -> Federation:
    return Federation.of(COUNT, assumed=ASSUMED).advertise()


@cache
def shared() -> Federation:
    return advertised().share()


def graph_of(count: int, context: bytes = b"context", assumed: Assumed = ASSUMED) -> Graph:
    return Graph(names(count), context, degree(count, assumed))


@pytest.mark.parametrize("count", [20, 24, 51, 100, 250])
@pytest.mark.parametrize("share", [0.02, 0.05, 0.1])
def test_the_numbers_of_neighbours_keep_their_bounds(count: int, share: float):
    assumed = Assumed.shares(count, share, share)
    found = degree(count, assumed)
    assert found is not None
    k, window = found.neighbours, found.window

    def above(population: int, marked: int, drawn: int, least: int) -> float:
        return count * float(hypergeom.sf(least - 1, population, marked, drawn))

    near = 1 + 1e-9  # scipy's tails are floats
    assert above(count, assumed.colluding, window, found.spread) <= 2**-SECRECY_BITS * near
    assert above(count - 1, assumed.colluding, k, found.threshold) <= 2**-SECRECY_BITS * near
    spared = window - found.spread + 1
    assert above(count, assumed.lost, window, spared) <= 2**-DELIVERY_BITS * near
    assert above(count - 1, assumed.lost, k, k - found.threshold + 1) <= 2**-DELIVERY_BITS * near


def test_neighbours_grow_slower_than_nodes():
    counts = [50, 100, 200]
    found = [degree(count, Assumed.shares(count, 0.1, 0.1)) for count in counts]
    assert all(each is not None for each in found)
    shares = [each.neighbours / count for each, count in zip(found, counts, strict=True) if each]
    assert all(later < earlier for earlier, later in pairwise(shares))


def test_where_all_neighbours_are_needed_the_graph_is_complete():
    assert degree(6, Assumed(2, 2)) is None
    whole = graph_of(6, assumed=Assumed(2, 2))
    assert all(whole.holders(node) == names(6) for node in names(6))


@settings(max_examples=40)
@given(st.integers(12, 80), st.binary(min_size=32, max_size=32))
def test_the_graph_is_regular_symmetric_and_the_contexts_own(count: int, context: bytes):
    graph = graph_of(count, context)
    if graph.degree is None:
        return
    for node in graph.nodes:
        holders = graph.holders(node)
        assert len(holders) == graph.degree.neighbours + 1
        assert node in holders
        assert all(node in graph.holders(other) for other in holders)
    assert graph.ring == graph_of(count, context).ring
    assert sorted(graph.ring) == sorted(graph.nodes)
    assert graph_of(count, context + b"x").ring != graph.ring


def connected(graph: Graph, nodes: set[str]) -> bool:
    reached, todo = set(), {next(iter(nodes))}
    while todo:
        node = todo.pop()
        reached.add(node)
        todo |= set(graph.near(node, nodes)) - reached
    return reached == nodes


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(0, 12), st.integers(0, 2**24 - 1))
def test_survivors_that_are_spread_stay_connected_without_the_colluding(
    context: int, lost: int, where: int
):
    """Whatever nodes are called lost: as long as no window has ``spread`` colluding ones."""
    graph = graph_of(COUNT, context.to_bytes(8, "big"))
    assert graph.degree is not None
    rng = np.random.default_rng(where)
    survivors = set(rng.permutation(graph.nodes)[lost:].tolist())
    colluding = set(rng.permutation(sorted(survivors))[: ASSUMED.colluding].tolist())
    if graph.least_spread(survivors) >= graph.degree.spread:
        assert len(colluding) < graph.degree.spread
        assert connected(graph, survivors - colluding)


def test_a_sparse_round_opens_the_weighted_mean():
    whole = shared().mask().confirm().reveal()
    made = whole.roster.graph.degree
    assert made is not None
    assert made.neighbours < COUNT - 1
    assert {len(sealed) for sealed in whole.envelopes.values()} == {made.neighbours + 1}
    assert np.all(np.abs(whole.open() - whole.expected()) <= whole.bounds())


def test_lost_nodes_cost_their_contribution_and_not_the_round():
    before, after = names(COUNT)[3], names(COUNT)[17]
    dealt = advertised().share([n for n in names(COUNT) if n != before])
    masked = dealt.mask([n for n in dealt.envelopes if n != after])
    confirmed = masked.confirm()
    late = confirmed.reveal([n for n in masked.vectors if n != names(COUNT)[0]])
    assert set(late.vectors) == set(names(COUNT)) - {before, after}
    assert np.all(np.abs(late.open() - late.expected()) <= late.bounds())


def neighbours_lost(count: int) -> tuple[Federation, str, list[str]]:
    """A node, and a round from which so many of its neighbours are lost before they deliver."""
    dealt, node = shared(), names(COUNT)[5]
    lost = [each for each in dealt.roster.graph.holders(node) if each != node][:count]
    return dealt.mask([n for n in names(COUNT) if n not in lost]), node, lost


def test_a_neighbourhood_below_its_threshold_opens_nothing():
    made = advertised().roster.graph.degree
    assert made is not None
    masked, node, _ = neighbours_lost(made.neighbours + 1 - made.threshold + 1)
    with pytest.raises(BelowThreshold):
        server.Outcome.of(masked.roster, masked.envelopes, masked.vectors)
    with pytest.raises(BelowThreshold):
        client.confirm(masked.states[node], masked.vectors, identity(node).sign, masked.envelopes)


def test_an_owner_that_calls_a_stretch_of_the_ring_lost_is_refused():
    """It could read the sum of the nodes between two such gaps."""
    masked = shared().mask()
    graph = masked.roster.graph
    made = graph.degree
    assert made is not None
    lost = graph.ring[: made.window - made.spread + 1]
    survivors = [node for node in masked.vectors if node not in lost]
    node = survivors[0]
    with pytest.raises(BelowThreshold, match="fall apart"):
        client.confirm(masked.states[node], survivors, identity(node).sign, masked.envelopes)


def test_a_node_confirms_only_the_members_that_it_masked_with():
    masked = shared().mask()
    node = names(COUNT)[0]
    near = [each for each in masked.roster.graph.holders(node) if each != node]
    members = [each for each in masked.envelopes if each != near[0]]
    survivors = [each for each in masked.vectors if each != near[0]]
    with pytest.raises(InconsistentRound, match="other members"):
        client.confirm(masked.states[node], survivors, identity(node).sign, members)


def starved(victims: list[str], helpers: list[str]) -> Federation:
    """An owner gives some nodes the envelopes of one another and of its helpers alone; the others
    confirm that all have masked with all their neighbours."""
    dealt = shared()
    masked = dealt.mask([n for n in dealt.nodes if n not in victims])
    states, vectors = dict(masked.states), dict(masked.vectors)
    for node in victims:
        inbox = {d: e for d, e in dealt.inbox(node).items() if d in (*victims, *helpers)}
        states[node], vectors[node] = client.mask(dealt.states[node], inbox, dealt.updates[node])
    unequal = replace(masked, states=states, vectors=vectors)
    return unequal.confirm([n for n in dealt.nodes if n not in victims])


def test_an_owner_that_keeps_envelopes_back_opens_no_part_of_the_sum():
    """Nodes between which alone masks are left would be an own sum; none reveals what opens it."""
    graph = shared().roster.graph
    made = graph.degree
    assert made is not None
    several = list(graph.ring[: made.threshold])
    one = graph.ring[5]
    near = [node for node in graph.holders(one) if node != one]
    for victims, helpers in ((several, []), ([one], near[: made.threshold - 1])):
        round_ = starved(victims, helpers)
        assert len(round_.confirmations) >= round_.threshold
        for victim in victims:
            with pytest.raises(InconsistentRound, match="other members"):
                round_.confirm([victim])
            asked = [n for n in graph.holders(victim) if n not in (*victims, *helpers)]
            for node in asked:
                with pytest.raises(BelowThreshold, match="did not confirm"):
                    round_.reveal([node])
            assert len(graph.holders(victim)) - len(asked) - len(victims) < made.threshold


def test_envelopes_of_strangers_are_refused():
    dealt, node = shared(), names(COUNT)[0]
    stranger = next(n for n in dealt.nodes if n not in dealt.roster.graph.holders(node))
    inbox = {**dealt.inbox(node), stranger: dealt.inbox(stranger)[stranger]}
    with pytest.raises(InconsistentRound, match="others than its neighbours"):
        client.mask(dealt.states[node], inbox, dealt.updates[node])
    with pytest.raises(InconsistentRound, match="each of its holders"):
        server.check_envelopes(dealt.roster, node, {**dealt.envelopes[node], stranger: b""})


def test_too_few_shares_of_one_node_are_noticed():
    whole = shared().mask().confirm().reveal()
    made = whole.roster.graph.degree
    assert made is not None
    node = names(COUNT)[2]
    silent = whole.roster.graph.holders(node)[made.threshold - 1 :]
    fewer = {n: r for n, r in whole.reveals.items() if n not in silent}
    assert len(fewer) >= whole.threshold
    with pytest.raises(BelowThreshold, match="neighbours revealed"):
        server.recover(whole.roster, whole.envelopes, whole.outcome, fewer)


def test_all_must_advertise_the_same_graph():
    other = Federation.of(COUNT, assumed=Assumed(1, 1)).advertise().advertisements
    mixed = {**advertised().advertisements, "site-00": other["site-00"]}
    with pytest.raises(InconsistentRound, match="graphs"):
        Roster.of(mixed, verify)


def test_colluding_nodes_raise_the_least_threshold():
    assert least_threshold(24) == 13
    assert least_threshold(24, ASSUMED) == 14
    with pytest.raises(InvalidInput, match="does not suit"):
        check_threshold(13, 24, ASSUMED)
    with pytest.raises(InconsistentRound, match="2 of them colluding"):
        replace(advertised(), threshold=13, assumed=ASSUMED).advertise().roster  # noqa: B018


def test_a_vector_stays_uniform_to_all_but_one_of_its_neighbours():
    """With every mask but one honest neighbour's taken off, it says nothing of the update."""
    dealt, node = shared(), names(COUNT)[7]
    roster = dealt.roster
    masked = dealt.mask([node]).vectors[node]
    near = [each for each in roster.graph.holders(node) if each != node]
    from primia.aggregation.keys import RoundSecrets
    from primia.aggregation.masking import apply_masks, pairwise_mask, self_mask

    known = [self_mask(RoundSecrets(dealt.seeds[node]).self_mask(), roster).inverse()]
    known += [
        pairwise_mask(RoundSecrets(dealt.seeds[peer]).masking(), roster, node, peer).inverse()
        for peer in near[1:]
    ]
    left = masked.copy()
    apply_masks(left, known)
    bits = np.unpackbits(left.view(np.uint8))
    ones = int(bits.sum())
    statistic = (2 * ones - len(bits)) ** 2 / len(bits)
    assert chi2.sf(statistic, 1) > 1e-6
    last = pairwise_mask(RoundSecrets(dealt.seeds[near[0]]).masking(), roster, node, near[0])
    apply_masks(left, [last.inverse()])
    small = left.view(np.int32).astype(np.float64) / 2**31
    assert np.abs(small).max() < 0.5  # now it is the encoded update, a small part of the ring


def test_a_degree_says_its_window():
    assert Degree(14, 4, 4).window == 7
