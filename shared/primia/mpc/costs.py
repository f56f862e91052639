"""What an inference will take over a given network: for choosing a protocol, not for benchmarks.

Bytes and rounds follow from the plan. Seconds of arithmetic are measured constants of a 2-core
x86-64 server, all parties on it; a slower machine is slower for every choice.
"""

from __future__ import annotations

from dataclasses import dataclass

from primia.mpc.material import half_size
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
# Requests that open a session, reserve a deal and fetch a half.
_OPENING_REQUESTS = 6


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


def fss_seconds(plan: Plan, batch: int, network: Network, *, kept: bool) -> float:
    """From the request to the result. ``kept``: a deal lies at this node already."""
    bill = plan.bill(batch)
    moved = bill.offline_bytes + bill.request_bytes + bill.response_bytes
    online = network.owner.seconds(bill.requests + 1, moved) + bill.comparisons * _ONLINE
    if kept:
        return online + network.owner.seconds(2, 0)
    fetched = network.dealer.seconds(_OPENING_REQUESTS, half_size(plan, batch, 1))
    return online + fetched + bill.comparisons * _DEALING


def securenn_seconds(plan: Plan, batch: int, network: Network) -> float:
    """A round costs one one-way delay of the slower link."""
    found = list(steps(plan, batch))
    comparisons = sum(step.count for step in found)
    rounds = _STREAMED_ROUNDS * len(found) + _linear_depth(plan) + 1
    size = _STREAMED_BYTES * comparisons
    slower = max(link.seconds(rounds / 2, size) for link in (network.owner, network.dealer))
    return slower + comparisons * _STREAMED


def _linear_depth(plan: Plan) -> int:
    """Linear layers on the longest way through the plan; those side by side share a round."""
    depths = [0]
    for op in plan.ops:
        own = isinstance(op, Convolution | Dense)
        depths.append(max(depths[source] for source in op.sources) + own)
    return depths[-1]
