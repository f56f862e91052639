"""A round of secure aggregation with many nodes, all in one process: seconds and bytes of each.

python -m benchmarks.simulated_nodes [--nodes 3 10 25 50 100] [--values 11200000]
Of more than fifty nodes, a round with a sparse graph is set beside one in which all mask with all.
One node drops out after its keys were shared. Only one update lies in memory at a time: all nodes
have the same, and the result must be it again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from primia.aggregation import client, server
from primia.aggregation.graph import degree
from primia.aggregation.quantise import exponents, tolerance
from primia.aggregation.terms import Assumed, Groups, RoundId, least_threshold
from primia.aggregation.wire import HEADER_BYTES
from primia.prg import Seed, Stream, fresh_bytes

COMPLETE_UP_TO = 50  # as services.model_owner.rounds.domain has it
ROUND = RoundId(bytes(16), 1)
SAMPLES = 100
_BUFFERS = 1000  # of a thousand values, one is a buffer's: as in ResNet-18
Result = TypeVar("Result")


@dataclass(frozen=True)
class Cost:
    """Processor seconds and bytes of one node (mean) and of the owner, without training."""

    node_seconds: float
    owner_seconds: float
    node_up: float
    node_down: float


@dataclass
class _Watch:
    spent: dict[str, float] = field(default_factory=dict)

    def time(self, who: str, action: Callable[[], Result]) -> Result:
        started = time.process_time()
        result = action()
        self.spent[who] = self.spent.get(who, 0.0) + time.process_time() - started
        return result


def measure(nodes: int, values: int, assumed: Assumed | None = None) -> Cost:
    groups = Groups(values - values // _BUFFERS, values // _BUFFERS)
    names = [f"site-{number:03}" for number in range(nodes)]
    keys = {name: Ed25519PrivateKey.from_private_bytes(fresh_bytes(32)) for name in names}
    words = Stream(Seed.fresh(), "benchmark").words(groups.size)
    update = ((words / np.float32(2**32) - np.float32(0.5)) / 4).astype(np.float32)
    del words
    watch = _Watch()

    def verify(node: str, message: bytes, signature: bytes) -> bool:
        try:
            keys[node].public_key().verify(signature, message)
        except InvalidSignature:
            return False
        return True

    begun = {
        name: watch.time(
            "node",
            lambda name=name: client.advertise(  # type: ignore[misc]
                Seed.fresh(),
                round_id=ROUND,
                node=name,
                threshold=least_threshold(nodes, assumed),
                assumed=assumed,
                samples=SAMPLES,
                groups=groups,
                exponents=exponents(update, groups),
                sign=keys[name].sign,
            ),
        )
        for name in names
    }
    ads = {name: message for name, (_, message) in begun.items()}
    roster = watch.time("owner", lambda: server.Roster.of(ads, verify))
    shared = {
        name: watch.time("node", lambda state=state: client.share(state, ads, verify))  # type: ignore[misc]
        for name, (state, _) in begun.items()
    }
    sealed = {name: envelopes for name, (_, envelopes) in shared.items()}
    survivors = names[:-1]
    total, states = server.RunningSum(groups.size), {}
    for name in survivors:
        inbox = server.inbox(sealed, name)
        states[name], vector = watch.time(
            "node",
            lambda name=name, inbox=inbox: client.mask(shared[name][0], inbox, update),  # type: ignore[misc]
        )
        watch.time("owner", lambda vector=vector: total.add(vector))  # type: ignore[misc]
    signed = {
        name: watch.time(
            "node",
            lambda name=name: client.confirm(states[name], survivors, keys[name].sign, sealed),  # type: ignore[misc]
        )
        for name in survivors
    }
    signatures = {name: signature for name, (_, signature) in signed.items()}
    reveals = {
        name: watch.time(
            "node",
            lambda name=name: client.reveal(signed[name][0], survivors, signatures, verify, sealed)[
                1
            ],  # type: ignore[misc]
        )
        for name in survivors
    }
    outcome = server.Outcome.of(roster, sealed, survivors)

    def opened() -> np.ndarray:
        plain = server.unmask(total.total, roster, sealed, outcome, reveals)
        return server.mean(plain, roster, outcome)

    mean = watch.time("owner", opened)
    bound = tolerance(max(roster.exponents), len(survivors), roster.weight(survivors))
    assert float(np.abs(mean - update).max()) <= bound
    first = survivors[0]
    up = len(ads[first]) + _size(sealed[first]) + len(reveals[first]) + 64
    up += HEADER_BYTES + 4 * groups.size
    down = _size(ads) + _size(server.inbox(sealed, first)) + _size(signatures)
    down += 2 * sum(map(len, survivors))
    return Cost(watch.spent["node"] / nodes, watch.spent["owner"], up, down)


def _size(messages: Mapping[str, bytes]) -> int:
    return sum(len(name) + len(data) for name, data in messages.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[3, 10, 25, 50, 100])
    parser.add_argument("--values", type=int, default=11_200_000)
    parser.add_argument("--share", type=float, default=0.1, help="of nodes that collude, and lost")
    given = parser.parse_args()
    for nodes in given.nodes:
        show(f"{nodes:3} nodes, all with all", measure(nodes, given.values))
        assumed = Assumed.shares(nodes, given.share, given.share)
        if nodes > COMPLETE_UP_TO and (found := degree(nodes, assumed)):
            name = f"{nodes:3} nodes, {found.neighbours} neighbours"
            show(name, measure(nodes, given.values, assumed))


def show(name: str, cost: Cost) -> None:
    print(
        f"{name}: node {cost.node_seconds:.2f} s, owner {cost.owner_seconds:.2f} s, "
        f"up {cost.node_up / 1e6:.2f} MB, down {cost.node_down / 1e6:.3f} MB beside the model",
        flush=True,
    )


if __name__ == "__main__":
    main()
