"""``protocol: auto``: the fastest way to a result that the user's demand on accuracy allows."""

from __future__ import annotations

import time
from dataclasses import dataclass

from primia.chassis.context import Context
from primia.chassis.peers import PeerClient
from primia.errors import MalformedMessage
from primia.messages.inference import Accuracy, ServedModel, ServedPlan
from primia.messages.inference import FixedProtocol as Protocol
from primia.mpc.costs import Link, Network, fss_seconds, securenn_seconds
from services.data_node.inference import kept
from services.data_node.inference.served import dealer, owner, public_plan

_CACHE = "inference.network"
_KEEP_SECONDS = 60.0
_ROUND_TRIPS = 3
PROBE_BYTES = 1 << 20


@dataclass(frozen=True)
class Choice:
    """``why`` is for people: what was measured, and what the other ways were expected to take."""

    model: ServedModel
    plan: ServedPlan
    protocol: Protocol
    seconds: float
    why: str = ""


def decide(
    ctx: Context, served: list[tuple[ServedModel, ServedPlan]], batch: int, accuracy: Accuracy
) -> Choice:
    """``served``: plans of one model version and result, the exact one among them. Where
    ``accuracy`` is calibrated, both kinds may be chosen."""
    network = measured(ctx)
    found: list[Choice] = []
    for model, wanted in served:
        plan = public_plan(ctx, model, wanted)
        held = kept.holds(ctx, wanted.plan, batch)
        if accuracy == "calibrated" or wanted.accuracy == "exact":
            seconds = fss_seconds(plan, batch, network, kept=held)
            found.append(Choice(model, wanted, "fss", seconds))
        if wanted.accuracy == "exact":
            seconds = securenn_seconds(plan, batch, network)
            found.append(Choice(model, wanted, "securenn", seconds))
    found.sort(key=lambda choice: choice.seconds)
    best = found[0]
    return Choice(best.model, best.plan, best.protocol, best.seconds, _why(found, network))


def _why(found: list[Choice], network: Network) -> str:
    ways = ", ".join(f"{each.protocol} {each.plan.accuracy} {each.seconds:.1f} s" for each in found)
    links = " and ".join(
        f"{name} {1e3 * link.round_trip_seconds:.1f} ms, {link.bytes_per_second / 1e6:.0f} MB/s"
        for name, link in (("owner", network.owner), ("crypto provider", network.dealer))
    )
    return f"Expected: {ways}. Measured: {links}."


def measured(ctx: Context) -> Network:
    """The two links; measured once a minute at most."""
    known = ctx.extras.get(_CACHE)
    now = time.monotonic()
    if known is None or now - known[0] > _KEEP_SECONDS:
        known = (now, Network(_link(owner(ctx)), _link(dealer(ctx))))
        ctx.extras[_CACHE] = known
    network: Network = known[1]
    return network


def _link(client: PeerClient) -> Link:
    trips = []
    for _ in range(_ROUND_TRIPS):
        start = time.perf_counter()
        client.request("GET", "/probe", params={"bytes": 0})
        trips.append(time.perf_counter() - start)
    trip = min(trips)
    start = time.perf_counter()
    answer = client.request("GET", "/probe", params={"bytes": PROBE_BYTES})
    took = time.perf_counter() - start
    if len(answer.content) != PROBE_BYTES:
        raise MalformedMessage(f"{client.name} answered the probe with another size.")
    return Link(trip, PROBE_BYTES / max(took - trip, 1e-4))
