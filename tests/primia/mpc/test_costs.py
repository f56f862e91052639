"""Expected seconds: right in their limits, and in what they say is faster. Memory: a bound."""

import tracemalloc

import pytest

from primia.errors import InvalidInput
from primia.mpc.costs import (
    AtHand,
    Link,
    Network,
    check_memory,
    fss_seconds,
    largest_batch,
    securenn_seconds,
    session_bytes,
)
from primia.mpc.material import half_size
from primia.mpc.opening import opening_size
from tests.primia.mpc.test_dealer import wide_plan
from tests.support.inference import Session, resnet18, weights_for, words

PLAN = resnet18(224)
FAST = Link(2e-4, 1e9)
FAR = Link(0.2, 1e9)
NARROW = Link(2e-4, 12.5e6)
SLOWER = 1 / 12.5e6 - 1e-9  # seconds a byte, of NARROW against FAST
DEALT, OWN, BOTH = AtHand(True), AtHand(True, True), AtHand(True, True, True)


def fss(owner, dealer, at_hand):
    return fss_seconds(PLAN, 1, Network(owner, dealer), at_hand)


def test_what_both_keep_leaves_the_requests_and_the_bytes_between_the_parties():
    near, far, narrow = (fss(link, FAST, BOTH) for link in (FAST, FAR, NARROW))
    assert far - near == pytest.approx((PLAN.requests + 3) * (0.2 - 2e-4))
    bill = PLAN.bill(1)
    assert narrow - near == pytest.approx((bill.request_bytes + bill.response_bytes) * SLOWER)
    assert fss(FAST, NARROW, BOTH) == near


def test_a_half_of_this_node_alone_leaves_the_owners_and_the_offline_message():
    near = fss(FAST, FAST, BOTH)
    offline = PLAN.bill(1).offline_bytes
    assert fss(NARROW, FAST, OWN) - fss(FAST, FAST, OWN) - fss(NARROW, FAST, BOTH) + near == (
        pytest.approx(offline * SLOWER)
    )
    fetched = fss(FAST, NARROW, OWN) - fss(FAST, FAST, OWN)
    assert fetched == pytest.approx(half_size(PLAN, 1, 0) * SLOWER)


def test_of_a_new_deal_the_larger_half_is_waited_for():
    sizes = [half_size(PLAN, 1, party) for party in (0, 1)]
    assert sizes[0] != sizes[1]
    found = fss(FAST, NARROW, DEALT) - fss(FAST, FAST, DEALT)
    assert found == pytest.approx(max(sizes) * SLOWER, rel=1e-6)


@pytest.mark.parametrize("deal", [{}, {"own_half": True}, {"own_half": True, "owner_half": True}])
def test_the_opening_comes_once_over_the_owners_link(deal):
    for owner in (FAST, NARROW):
        new, known = (fss(owner, FAST, AtHand(known, **deal)) for known in (False, True))
        assert new - known == pytest.approx(opening_size(PLAN) / owner.bytes_per_second)


def test_securenns_opening_has_8_bytes_a_weight():
    for owner in (FAST, NARROW):
        network = Network(owner, FAST)
        new, known = (securenn_seconds(PLAN, 1, network, AtHand(at)) for at in (False, True))
        weights = (opening_size(PLAN) - 40) / 4
        assert new - known == pytest.approx(8 * weights / owner.bytes_per_second)


def test_securenn_pays_for_its_rounds():
    """208 rounds of a one-way delay each."""
    near, far = (securenn_seconds(PLAN, 1, Network(link, FAST), DEALT) for link in (FAST, FAR))
    assert far - near == pytest.approx(208 / 2 * (0.2 - 2e-4))


@pytest.mark.parametrize("link", [FAST, FAR, NARROW])
def test_a_deal_at_hand_is_always_faster_than_securenn(link):
    network = Network(link, link)
    assert fss_seconds(PLAN, 1, network, BOTH) < securenn_seconds(PLAN, 1, network, DEALT)


def test_over_a_slow_link_to_the_dealer_alone_neither_is_free():
    """Without a stock both send about as much over that link."""
    network = Network(FAST, NARROW)
    ratio = fss_seconds(PLAN, 1, network, DEALT) / securenn_seconds(PLAN, 1, network, DEALT)
    assert 0.5 < ratio < 1.5


# -- memory -----------------------------------------------------------------------------------

GB = 10**9


def test_a_session_is_its_half_and_some():
    for batch in (1, 16):
        more = session_bytes(PLAN, batch) - half_size(PLAN, batch, 0)
        assert 40e6 < more / batch < 60e6
    assert session_bytes(PLAN, 16) == pytest.approx(10.4e9, rel=0.02)


def test_both_parties_stay_within_what_is_said():
    """Beside the halves, which a test holds as bytes, made beforehand."""
    plan, batch = wide_plan(), 4
    session = Session(plan, weights_for(plan, 3), batch)
    session.prepare()  # loads what is loaded once
    session = Session(plan, weights_for(plan, 3), batch)
    image = words(5, (batch, *plan.input_shape)) / 2**32
    tracemalloc.start()
    try:
        session.run(image)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    said = session_bytes(plan, batch) - half_size(plan, batch, 0)
    assert said / 4 < most < 2 * said


@pytest.mark.parametrize("limit", [10**8, GB, 5 * GB, 100 * GB])
def test_the_largest_batch_fits_and_the_next_does_not(limit):
    most = largest_batch(PLAN, limit, 64)
    for batch in range(1, 65):
        assert (session_bytes(PLAN, batch) <= limit) == (batch <= most)


def test_a_batch_over_the_limit_is_refused_by_its_size():
    check_memory(PLAN, 4, 3 * GB)
    with pytest.raises(
        InvalidInput, match=r"batch of 5 would take 3\.\d\d GB .* 3\.00 are"
    ) as found:
        check_memory(PLAN, 5, 3 * GB)
    assert "PRIMIA_MAX_SESSION_BYTES" in (found.value.hint or "")
