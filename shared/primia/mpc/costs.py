"""What an inference will take: time over a given network, for choosing a protocol and not for
benchmarks; and memory, for refusing in time.

Bytes and rounds follow from the plan. Seconds of arithmetic are measured constants of a 2-core
x86-64 server, all parties on it; a slower machine is slower for every choice.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from primia.errors import InvalidInput
from primia.mpc.material import half_size
from primia.mpc.opening import opening_size
from primia.mpc.operations import Convolution, Dense
from primia.mpc.plan import Plan
from primia.mpc.securenn.layout import steps

# Seconds a comparison: dealt and both halves written; online, both parties (fss); online, all
# three parties side by side on two cores (securenn).
_DEALING = 3.5e-7
_ONLINE = 2.1e-7
_STREAMED = 9e-7
# SecureNN (docs/securenn.md): bytes a comparison over each of the three links, rounds a step.
_STREAMED_BYTES = 180
_STREAMED_ROUNDS = 9
_STREAMED_WEIGHT_BYTES = 8
# Bytes that a party holds for each value of the widest layer: masks, shares, what is opened, and a
# copy of each on its way into a message (measured: 45 at P0, 34 at P1).
_VALUE_BYTES = 48
# Requests that open a session, reserve a deal and fetch a half; that fetch a half alone.
_OPENING_REQUESTS = 6
_FETCHING_REQUESTS = 3


def session_bytes(plan: Plan, batch: int) -> int:
    """About what a party holds at most for a session of FSS, beside its libraries and weights: its
    half of the deal, mapped from the disk; the offline message, and that once more while it is
    put together; and the widest layer's values."""
    half = max(half_size(plan, batch, party) for party in (0, 1))
    widest = max(math.prod(shape) for shape in plan.shapes())
    return half + 2 * plan.bill(batch).offline_bytes + _VALUE_BYTES * batch * widest


def largest_batch(plan: Plan, limit: int, most: int) -> int:
    """How many images, up to ``most``, a session within ``limit`` bytes takes; 0: not even one."""
    return bisect_right(range(1, most + 1), limit, key=lambda batch: session_bytes(plan, batch))


def check_memory(plan: Plan, batch: int, limit: int) -> None:
    """Raises InvalidInput where a session of FSS would take more than ``limit`` bytes."""
    needed = session_bytes(plan, batch)
    if needed > limit:
        raise InvalidInput(
            f"A session for a batch of {batch} would take {needed / 1e9:.2f} GB of memory; "
            f"{limit / 1e9:.2f} are allowed here.",
            hint="Ask for fewer images at a time, or raise PRIMIA_MAX_SESSION_BYTES.",
        )


@dataclass(frozen=True)
class Link:
    """To one peer, as measured: there and back, and downwards."""

    round_trip_seconds: float
    bytes_per_second: float

    def seconds(self, requests: float, size: float) -> float:
        return requests * self.round_trip_seconds + size / self.bytes_per_second


@dataclass(frozen=True)
class Network:
    owner: Link
    dealer: Link


@dataclass(frozen=True)
class AtHand:
    """What of an inference need not come any more. ``opening``: this node has E of the model
    version; ``own_half``: a deal's half lies here, ``owner_half``: the model owner's too, with the
    offline message."""

    opening: bool = False
    own_half: bool = False
    owner_half: bool = False


def fss_seconds(plan: Plan, batch: int, network: Network, at_hand: AtHand) -> float:
    """From the request to the result. The owner's link to the crypto provider is not measured here:
    it is taken to be as this node's."""
    bill = plan.bill(batch)
    moved = bill.request_bytes + bill.response_bytes
    moved += 0 if at_hand.opening else opening_size(plan)
    moved += 0 if at_hand.owner_half else bill.offline_bytes
    seconds = network.owner.seconds(bill.requests + 1, moved) + bill.comparisons * _ONLINE
    if at_hand.owner_half:
        return seconds + network.owner.seconds(2, 0)
    if at_hand.own_half:
        fetched = network.dealer.seconds(_FETCHING_REQUESTS, half_size(plan, batch, 0))
        return seconds + network.owner.seconds(2, 0) + fetched
    # Both halves come at the same time, each over its own link.
    larger = max(half_size(plan, batch, party) for party in (0, 1))
    fetched = network.dealer.seconds(_OPENING_REQUESTS, larger)
    return seconds + fetched + bill.comparisons * _DEALING


def securenn_seconds(plan: Plan, batch: int, network: Network, at_hand: AtHand) -> float:
    """A round costs one one-way delay of the slower link. Of what is at hand its opening counts,
    which is another than that of FSS."""
    found = list(steps(plan, batch))
    comparisons = sum(step.count for step in found)
    rounds = _STREAMED_ROUNDS * len(found) + _linear_depth(plan) + 1
    size = _STREAMED_BYTES * comparisons
    slower = max(link.seconds(rounds / 2, size) for link in (network.owner, network.dealer))
    weights = sum(math.prod(shape) for _, shape in plan.linear())
    opening = 0 if at_hand.opening else _STREAMED_WEIGHT_BYTES * weights
    return slower + comparisons * _STREAMED + network.owner.seconds(0, opening)


def _linear_depth(plan: Plan) -> int:
    """Linear layers on the longest way through the plan; those side by side share a round."""
    depths = [0]
    for op in plan.ops:
        own = isinstance(op, Convolution | Dense)
        depths.append(max(depths[source] for source in op.sources) + own)
    return depths[-1]
