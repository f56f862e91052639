"""Whole rounds: whoever drops out whenever, the owner opens the weighted mean of the survivors or
is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primia.aggregation import server
from primia.aggregation.errors import BelowThreshold
from primia.aggregation.plain import WeightedMean
from primia.aggregation.quantise import tolerance
from primia.aggregation.terms import Groups, RoundId, default_threshold
from primia.prg import Seed
from tests.primia.aggregation.federation import Federation, names, random_update


def subsets(nodes: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for size in range(len(nodes) + 1):
        yield from combinations(nodes, size)


def check_opened(round_: Federation) -> None:
    assert np.all(np.abs(round_.open() - round_.expected()) <= round_.bounds())


@pytest.mark.parametrize(
    ("count", "threshold"), [(2, 2), (3, 2), (3, 3), (4, 3), (4, 4)], ids=lambda value: str(value)
)
def test_every_pattern_of_dropout(count: int, threshold: int) -> None:
    """advertisers >= members >= survivors >= confirmers >= revealers, in every way there is."""
    opened = refused = 0
    start = Federation.of(count, threshold=threshold)
    for advertisers in subsets(start.nodes):
        advertised = start.advertise(advertisers)
        if len(advertisers) < threshold:
            for node in advertisers:
                with pytest.raises(BelowThreshold):
                    advertised.share([node])
            refused += 1
            continue
        for members in subsets(advertisers):
            shared = advertised.share(members)
            if len(members) < threshold:
                for node in members:
                    with pytest.raises(BelowThreshold):
                        shared.mask([node])
                refused += 1
                continue
            masked = shared.mask()
            for survivors in subsets(members):
                remaining = replace(masked, vectors={n: masked.vectors[n] for n in survivors})
                more_opened, more_refused = finish(remaining, survivors, threshold)
                opened, refused = opened + more_opened, refused + more_refused
    assert opened == expected_openings(count, threshold)
    assert refused > 0


def finish(masked: Federation, survivors: tuple[str, ...], threshold: int) -> tuple[int, int]:
    """Confirm, reveal and open with every subset; (opened, refused)."""
    if len(survivors) < threshold:
        for node in survivors:
            with pytest.raises(BelowThreshold):
                masked.confirm([node])
        return 0, 1
    opened = refused = 0
    confirmed_by_all = masked.confirm()
    for confirmers in subsets(survivors):
        confirmations = {n: confirmed_by_all.confirmations[n] for n in confirmers}
        confirmed = replace(confirmed_by_all, confirmations=confirmations)
        if len(confirmers) < threshold:
            for node in confirmers:
                with pytest.raises(BelowThreshold):
                    confirmed.reveal([node])
            refused += 1
            continue
        everything = confirmed.reveal()
        for revealers in subsets(confirmers):
            revealed = replace(everything, reveals={n: everything.reveals[n] for n in revealers})
            if len(revealers) >= threshold:
                check_opened(revealed)
                opened += 1
            else:
                with pytest.raises(BelowThreshold):
                    revealed.open()
                refused += 1
    return opened, refused


def expected_openings(count: int, threshold: int) -> int:
    """Chains of five nested sets of which the last has at least ``threshold`` nodes."""
    return sum(
        len(list(combinations(range(count), size))) * 5 ** (count - size)
        for size in range(threshold, count + 1)
    )


@st.composite
def rounds(draw: st.DrawFn) -> tuple[Federation, list[int]]:
    count = draw(st.integers(5, 9))
    nodes = names(count)
    groups = Groups(draw(st.integers(0, 90)), draw(st.integers(1, 9)))
    scale = draw(st.sampled_from([1e-9, 1e-3, 1.0, 1e6]))
    seed = draw(st.integers(0, 2**32))
    federation = Federation.of(
        count,
        groups=groups,
        threshold=draw(st.integers(default_threshold(count), count)),
        round_id=RoundId(
            draw(st.binary(min_size=16, max_size=16)), draw(st.integers(0, 2**32 - 1))
        ),
        updates={n: random_update(seed + at, groups, scale) for at, n in enumerate(nodes)},
        samples={n: draw(st.integers(1, 100_000)) for n in nodes},
        seeds={n: Seed.fresh() for n in nodes},
    )
    return federation, draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))


@settings(max_examples=25, deadline=None)
@given(rounds())
def test_larger_rounds_open_to_the_weighted_mean_or_are_refused(
    case: tuple[Federation, list[int]],
) -> None:
    """A node leaves before step 1 to 5; above that it stays."""
    federation, leaving = case

    def left(step: int) -> list[str]:
        return [n for n, at in zip(federation.nodes, leaving, strict=True) if at > step]

    try:
        done = federation.advertise(left(1)).share(left(2)).mask(left(3))
        check_opened(done.confirm(left(4)).reveal(left(5)))
    except BelowThreshold:
        assert len(left(5)) < federation.threshold
    else:
        assert len(left(5)) >= federation.threshold


def test_secure_and_plain_aggregation_agree_within_the_tolerance() -> None:
    federation = Federation.of(5).whole()
    plain = WeightedMean(federation.groups.size)
    for node in federation.nodes:
        plain.add(federation.updates[node], federation.samples[node])
    secure, roster = federation.open(), federation.roster
    for (_, span), exponent in zip(federation.groups.spans(), roster.exponents, strict=True):
        difference = np.abs(secure[span].astype(np.float64) - plain.result()[span])
        assert difference.max() <= tolerance(exponent, 5)


def test_equal_updates_sum_to_the_bound_without_overflow() -> None:
    """Every node at the largest float32 below 2^e: the sum is as large as it can be."""
    largest = np.full(43, np.nextafter(np.float32(2), np.float32(0)), dtype=np.float32)
    samples = dict.fromkeys(names(7), 1)
    for update in (largest, -largest):
        updates = dict.fromkeys(names(7), update)
        federation = Federation.of(7, updates=updates, samples=samples).whole()
        assert federation.roster.exponents == (1, 1)
        check_opened(federation)


def test_the_order_of_arrival_does_not_matter() -> None:
    federation = Federation.of(4).whole()
    backwards = replace(
        federation,
        vectors=dict(reversed(federation.vectors.items())),
        reveals=dict(reversed(federation.reveals.items())),
        envelopes=dict(reversed(federation.envelopes.items())),
    )
    assert np.array_equal(federation.open(), backwards.open())


def test_a_roster_may_be_smaller_than_the_run() -> None:
    federation = Federation.of(5)
    check_opened(federation.advertise(federation.nodes[:3]).share().mask().confirm().reveal())


def test_the_sum_without_unmasking_is_not_the_sum() -> None:
    federation = Federation.of(3).whole()
    masked = server.mean(federation.sum(), federation.roster, federation.outcome)
    assert np.mean(np.abs(masked - federation.expected()) > federation.bounds()) > 0.9
