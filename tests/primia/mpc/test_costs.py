"""Expected seconds: right in their limits, and in what they say is faster."""

import pytest

from primia.mpc.costs import Link, Network, fss_seconds, securenn_seconds
from tests.support.inference import resnet18

PLAN = resnet18(224)
FAST = Link(2e-4, 1e9)
FAR = Link(0.2, 1e9)
NARROW = Link(2e-4, 12.5e6)


def test_a_deal_at_hand_leaves_the_requests_and_the_bytes_between_the_parties():
    near = fss_seconds(PLAN, 1, Network(FAST, FAST), kept=True)
    far = fss_seconds(PLAN, 1, Network(FAR, FAST), kept=True)
    assert far - near == pytest.approx((PLAN.requests + 3) * (0.2 - 2e-4))
    narrow = fss_seconds(PLAN, 1, Network(NARROW, FAST), kept=True)
    bill = PLAN.bill(1)
    size = bill.offline_bytes + bill.request_bytes + bill.response_bytes
    assert narrow - near == pytest.approx(size * (1 / 12.5e6 - 1e-9))
    assert fss_seconds(PLAN, 1, Network(FAST, NARROW), kept=True) == near


def test_without_a_deal_the_material_comes_over_the_dealers_link():
    networks = Network(FAST, FAST), Network(FAST, NARROW)
    wide, narrow = (fss_seconds(PLAN, 1, network, kept=False) for network in networks)
    assert narrow - wide == pytest.approx(566.0e6 * (1 / 12.5e6 - 1e-9), rel=0.01)


def test_securenn_pays_for_its_rounds():
    """208 rounds of a one-way delay each."""
    near, far = (securenn_seconds(PLAN, 1, Network(link, FAST)) for link in (FAST, FAR))
    assert far - near == pytest.approx(208 / 2 * (0.2 - 2e-4))


@pytest.mark.parametrize("link", [FAST, FAR, NARROW])
def test_a_deal_at_hand_is_always_faster_than_securenn(link):
    network = Network(link, link)
    assert fss_seconds(PLAN, 1, network, kept=True) < securenn_seconds(PLAN, 1, network)


def test_over_a_slow_link_to_the_dealer_alone_neither_is_free():
    """Without a stock both send about as much over that link."""
    network = Network(FAST, NARROW)
    ratio = fss_seconds(PLAN, 1, network, kept=False) / securenn_seconds(PLAN, 1, network)
    assert 0.5 < ratio < 1.5
