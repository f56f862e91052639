"""``protocol: auto``: which plans come into question, and that the fastest is taken."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from primia.errors import MalformedMessage
from primia.messages.common import ModelCard
from primia.messages.inference import ServedModel, ServedPlan
from primia.mpc.costs import AtHand, Link, Network, fss_seconds, securenn_seconds
from services.data_node.inference import planner
from services.data_node.inference.domain import admissible, choose
from services.data_node.inference.planner import Offer, fastest
from tests.support.inference import Builder, resnet18

NEAR, NARROW = Link(2e-4, 1e9), Link(2e-4, 1e6)
PLAN = resnet18(32)


def windowed():
    """The same network in small, whose material is a part of the other's."""
    b = Builder((3, 8, 8))
    b.head(b.relu(b.conv(0, 4)), 3)
    return b.plan(10)


def served(accuracy="exact", result="scores"):
    name = f"{accuracy}/{result}".encode().hex()
    return ServedPlan(
        plan=f"{name:0<32}"[:32], result=result, accuracy=accuracy, digest="1" * 64,
        opening_bytes=1, opening_sha256="2" * 64, batch=1,
    )  # fmt: skip


def model(*plans, version=1):
    card = ModelCard(
        name="chest", version=version, architecture="small_cnn", classes=("a", "b"), channels=1,
        image_size=16, digest="0" * 64,
    )  # fmt: skip
    return ServedModel(card=card, plans=plans or (served(), served("calibrated")))


EXACT, CALIBRATED = served(), served("calibrated")


@pytest.mark.parametrize(
    ("plans", "wanted", "found"),
    [
        ((EXACT, CALIBRATED), CALIBRATED, (EXACT, CALIBRATED)),
        ((EXACT, CALIBRATED), EXACT, (EXACT,)),
        ((CALIBRATED,), CALIBRATED, (CALIBRATED,)),
        ((CALIBRATED, served(result="label")), CALIBRATED, (CALIBRATED,)),
    ],
)
def test_who_admits_windows_is_content_with_whole_values(plans, wanted, found):
    assert admissible(model(*plans), wanted) == found


def test_the_plans_that_are_compared_are_of_one_version():
    older, newer = model(version=1), model(EXACT, version=2)
    chosen, plan = choose([newer, older], "chest", None, "scores", "calibrated")
    assert chosen.card.version == 1
    assert admissible(chosen, plan) == older.plans


KNOWN, KEPT = AtHand(opening=True), AtHand(True, True, True)
BOTH = [Offer(EXACT, PLAN, KNOWN, KNOWN), Offer(CALIBRATED, windowed(), KNOWN)]


@pytest.mark.parametrize(
    ("offers", "network", "way"),
    [
        # Less material comes sooner.
        (BOTH, Network(NEAR, NEAR), ("fss", "calibrated")),
        # What lies here already need not come at all.
        ([Offer(EXACT, PLAN, KEPT, KNOWN), BOTH[1]], Network(NEAR, NARROW), ("fss", "exact")),
        # SecureNN's messages are smaller than a half, where its rounds cost nothing.
        (BOTH[:1], Network(NEAR, NARROW), ("securenn", "exact")),
        # Each of its rounds costs a delay.
        (BOTH[:1], Network(Link(0.2, 1e9), NEAR), ("fss", "exact")),
        # A plan whose opening is still to come from far away stands back.
        ([Offer(EXACT, PLAN), BOTH[1]], Network(NARROW, NEAR), ("fss", "calibrated")),
        ([BOTH[0], Offer(CALIBRATED, PLAN)], Network(NARROW, NEAR), ("fss", "exact")),
        # SecureNN's is twice as long as that of FSS.
        (BOTH[:1], Network(Link(2e-4, 4e6), NARROW), ("securenn", "exact")),
        ([Offer(EXACT, PLAN)], Network(Link(2e-4, 4e6), NARROW), ("fss", "exact")),
        # It has no windows.
        ([Offer(CALIBRATED, PLAN)], Network(NEAR, NARROW), ("fss", "calibrated")),
    ],
)
def test_the_fastest_way_is_taken(offers, network, way):
    choice = fastest(model(), offers, 1, network)
    assert (choice.protocol, choice.plan.accuracy) == way


@pytest.mark.parametrize("fss", [AtHand(), KNOWN, AtHand(True, True), KEPT])
@pytest.mark.parametrize("dealer", [NEAR, NARROW, Link(0.2, 1e7)])
@pytest.mark.parametrize("owner", [NEAR, NARROW, Link(0.2, 1e7)])
def test_no_other_way_is_expected_to_be_faster(owner, dealer, fss):
    network = Network(owner, dealer)
    offers = [Offer(EXACT, PLAN, fss, KNOWN), Offer(CALIBRATED, PLAN)]
    choice = fastest(model(), offers, 2, network)
    ways = [fss_seconds(PLAN, 2, network, fss), securenn_seconds(PLAN, 2, network, KNOWN)]
    ways.append(fss_seconds(PLAN, 2, network, AtHand()))
    assert choice.seconds == min(ways)
    for seconds in ways:
        assert f"{seconds:.1f} s" in choice.why


def test_the_reason_names_the_ways_and_the_links():
    choice = fastest(model(), BOTH, 1, Network(Link(0.0204, 12.5e6), NEAR))
    expected, _, links = choice.why.partition(" Measured: ")
    ways = [way.rsplit(" ", 2)[0] for way in expected.removeprefix("Expected: ").split(", ")]
    assert sorted(ways) == ["fss calibrated", "fss exact", "securenn exact"]
    assert ways[0] == f"{choice.protocol} {choice.plan.accuracy}"
    assert links == "owner 20.4 ms, 12 MB/s and crypto provider 0.2 ms, 1000 MB/s."


class Peer:
    """Answers after a time of its own: ``trips`` there and back, and a second a MB."""

    name = "model-owner"

    def __init__(self, clock, trips, size=None):
        self.clock, self.trips, self.size = clock, list(trips), size

    def request(self, _method, path, params):
        assert path == "/probe"
        asked = params["bytes"]
        self.clock.now += (self.trips.pop(0) if self.trips else 0.05) + asked / 1e6
        return SimpleNamespace(content=bytes(asked if self.size is None else self.size))


@pytest.fixture
def clock(monkeypatch):
    made = SimpleNamespace(now=100.0)
    monkeypatch.setattr(planner.time, "perf_counter", lambda: made.now)
    monkeypatch.setattr(planner.time, "monotonic", lambda: made.now)
    return made


def test_a_link_is_measured_by_its_best_round_trip_and_a_megabyte(clock):
    link = planner._link(Peer(clock, [0.3, 0.05, 0.2]))
    assert link.round_trip_seconds == pytest.approx(0.05)
    assert link.bytes_per_second == pytest.approx(1e6, rel=1e-6)


def test_a_probe_of_another_size_is_malformed(clock):
    with pytest.raises(MalformedMessage, match="model-owner answered the probe"):
        planner._link(Peer(clock, [], size=5))


def test_links_are_measured_once_a_minute(clock, monkeypatch):
    peers = {"owner": Peer(clock, []), "dealer": Peer(clock, [])}
    asked = []
    for name, peer in peers.items():
        monkeypatch.setattr(planner, name, lambda _ctx, p=peer, n=name: asked.append(n) or p)
    ctx = SimpleNamespace(extras={})
    first = planner.measured(ctx)
    assert planner.measured(ctx) is first
    assert asked == ["owner", "dealer"]
    clock.now += 61
    assert planner.measured(ctx) is not first
    assert len(asked) == 4
