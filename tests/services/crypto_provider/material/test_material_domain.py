"""Every state against every event, and the rules of resumable downloads."""

import itertools

import pytest

from primia.errors import Conflict, Forbidden, InvalidInput, Spent
from primia.mpc.material import part_size
from services.crypto_provider.material.domain import (
    ENDED,
    OPEN,
    DealState,
    Event,
    Parties,
    Sizes,
    affordable,
    check_download,
    check_fits,
    missing_stock,
    parse_range,
    step,
    threads_of,
)
from tests.services.crypto_provider.conftest import small_plan

ALLOWED = {
    ("making", "dealt"): "ready",
    ("making", "claim"): "promised",
    ("making", "give up"): "failed",
    ("promised", "dealt"): "reserved",
    ("promised", "give up"): "failed",
    ("ready", "claim"): "reserved",
    ("reserved", "finish"): "spent",
    **{
        (state, event): "spent"
        for state in ("making", "promised", "ready", "reserved")
        for event in ("burn", "expire")
    },
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(DealState, Event)))
def test_every_state_against_every_event(state, event):
    following = ALLOWED.get((state.value, event.value))
    if following is not None:
        assert step(state, event).value == following
    elif state in ENDED:
        with pytest.raises(Spent):
            step(state, event)
    else:
        with pytest.raises(Conflict):
            step(state, event)


def test_nothing_leaves_an_ended_state_and_only_a_claim_reserves():
    reachable = {
        state: {step(DealState(s), Event(e)) for (s, e) in ALLOWED if s == state.value}
        for state in OPEN
    }
    assert set(OPEN) | set(ENDED) == set(DealState)
    assert DealState.RESERVED in reachable[DealState.READY]
    assert DealState.READY not in reachable[DealState.RESERVED]


def test_parties():
    parties = Parties("owner", "node-a")
    assert (parties.index("owner"), parties.index("node-a")) == (0, 1)
    with pytest.raises(Forbidden):
        parties.index("node-b")
    with pytest.raises(Forbidden):
        Parties("owner", None).index("node-a")


@pytest.mark.parametrize(("header", "start"), [(None, 0), ("bytes=0-", 0), ("bytes=7-", 7)])
def test_ranges_that_are_understood(header, start):
    assert parse_range(header, 10) == start


@pytest.mark.parametrize(
    "header",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-5",
        "bytes=1-2",
        "bytes=1-,3-",
        "items=1-",
        "bytes=+1-",
        "bytes=1_0-",
        "bytes=٣-",
        "bytes=10-",
        "bytes=99999999999999999999-",
    ],
)
def test_ranges_that_are_not(header):
    with pytest.raises(InvalidInput):
        parse_range(header, 10)


@pytest.mark.parametrize(
    ("start", "last", "received", "error"),
    [
        (0, None, False, None),
        (5, None, False, Conflict),
        (6, 5, False, None),
        (5, 5, False, Spent),
        (0, 0, False, Spent),
        (0, 5, False, Spent),
        (6, 5, True, Spent),
        (0, None, True, Spent),
    ],
)
def test_a_half_only_goes_forward(start, last, received, error):
    if error is None:
        check_download(start, last, received)
        return
    with pytest.raises(error):
        check_download(start, last, received)


def test_sizes_of_a_deal():
    plan = small_plan()
    p0, p1, common = (part_size(plan, 2, part) for part in ("p0", "p1", "common"))
    assert Sizes.of(plan, 2) == Sizes(p0 + common, p1 + common, p0 + p1 + common)


@pytest.mark.parametrize(
    ("wanted", "size", "held", "cap", "free", "count"),
    [
        (3, 10, 0, 100, 100, 3),
        (3, 10, 75, 100, 100, 2),
        (3, 10, 0, 100, 15, 1),
        (3, 10, 95, 100, 100, 0),
        (3, 10, 200, 100, 100, 0),
        (0, 10, 0, 100, 100, 0),
    ],
)
def test_the_stock_keeps_to_cap_and_disk(wanted, size, held, cap, free, count):
    assert affordable(wanted, size, held, cap, free) == count


def test_what_is_made_ahead_leaves_a_share_to_others():
    assert [affordable(9, 10, held, 100, 100, 0.75) for held in (0, 65, 75)] == [7, 1, 0]
    assert affordable(9, 10, 20, 1000, 60, 0.75) == 4  # three quarters of what the disk holds


def test_a_deal_over_the_cap_is_refused_by_its_size():
    check_fits(100, 100)
    with pytest.raises(InvalidInput, match=r"0\.11 GB; .* 0\.10 GB at most"):
        check_fits(110_000_000, 100_000_000)


@pytest.mark.parametrize(
    ("waits", "threads", "at_once", "own"),
    [(True, 16, 16, 16), (False, 16, 16, 1), (False, 16, 4, 4), (False, 1, 2, 1), (True, 1, 2, 1)],
)
def test_a_deal_that_an_image_waits_for_takes_all_threads(waits, threads, at_once, own):
    assert threads_of(waits, threads, at_once) == own


def test_missing_stock():
    assert [missing_stock(3, ready, making) for ready, making in [(0, 0), (1, 1), (5, 0)]] == [
        3,
        1,
        0,
    ]
