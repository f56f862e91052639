"""``protocol: auto``: the fastest way to a result that the user's demand on accuracy allows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from primia.chassis.context import Context
from primia.chassis.peers import PeerClient
from primia.errors import InvalidInput, MalformedMessage
from primia.messages.inference import FixedProtocol as Protocol
from primia.messages.inference import ServedModel, ServedPlan
from primia.mpc import costs
from primia.mpc.costs import AtHand, Link, Network, fss_seconds, securenn_seconds
from primia.mpc.plan import Plan
from services.data_node.inference import kept, store
from services.data_node.inference.served import dealer, has_opening, owner, public_plan

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


@dataclass(frozen=True)
class Offer:
    """A served plan, and what lies ready for it and the batch, protocol by protocol."""

    served: ServedPlan
    plan: Plan
    fss: AtHand = field(default_factory=AtHand)
    securenn: AtHand = field(default_factory=AtHand)


def decide(ctx: Context, model: ServedModel, plans: Sequence[ServedPlan], batch: int) -> Choice:
    """``plans``: of this version and of one result; any of them may be chosen."""
    offers = [offer(ctx, model, each, batch) for each in plans]
    return fastest(model, offers, batch, measured(ctx))


def offer(ctx: Context, model: ServedModel, each: ServedPlan, batch: int) -> Offer:
    own, both = kept.held(ctx, each.plan, batch)
    with ctx.db.reading() as session:
        streamed = store.streamed_before(session, model.card, each)
    return Offer(
        each,
        public_plan(ctx, model, each),
        AtHand(has_opening(ctx, each), own, both),
        # SecureNN's E lies in a worker's memory, which nobody can ask.
        AtHand(opening=streamed),
    )


def check_memory(ctx: Context, choice: Choice, batch: int) -> None:
    """Raises InvalidInput where either party lacks the memory; nothing has been dealt yet."""
    if choice.protocol != "fss":  # SecureNN's parties check for themselves: they deal nothing
        return
    most = choice.plan.largest_batch
    if batch > most:
        raise InvalidInput(
            f"The model owner has memory for {most} images of this model at a time, not {batch}.",
            hint="Ask for fewer images at a time, or have PRIMIA_MAX_SESSION_BYTES raised there.",
        )
    plan = public_plan(ctx, choice.model, choice.plan)
    costs.check_memory(plan, batch, ctx.settings.max_session_bytes)


def fastest(model: ServedModel, offers: Sequence[Offer], batch: int, network: Network) -> Choice:
    """The least expected time; the first of equals. SecureNN compares whole values: exact alone."""
    found: list[Choice] = []
    for each in offers:
        seconds = fss_seconds(each.plan, batch, network, each.fss)
        found.append(Choice(model, each.served, "fss", seconds))
        if each.served.accuracy == "exact":
            seconds = securenn_seconds(each.plan, batch, network, each.securenn)
            found.append(Choice(model, each.served, "securenn", seconds))
    found.sort(key=lambda choice: choice.seconds)
    return replace(found[0], why=_why(found, network))


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
