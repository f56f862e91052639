"""Seconds and bytes of one round of secure aggregation, all parties in one process.

python -m benchmarks.aggregation [--values 11200000] [--nodes 3 10] [--runs 3]
Times are the best of the runs, by the clock and of the processor, which other work on the machine
disturbs less; rates are by the latter, of vector or mask worked through. The limits are those of
this machine's memory and AES units. One node drops out after its keys were shared.
"""

from __future__ import annotations

import argparse
import io
import time
import tracemalloc
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from primia.aggregation import client, opening, server, wire
from primia.aggregation.plain import WeightedMean
from primia.aggregation.quantise import exponents, step, tolerance
from primia.aggregation.state import NodeState
from primia.aggregation.terms import Groups, RoundId, default_threshold
from primia.prg import Seed, Stream, fresh_bytes

BUFFER_SHARE = 1000  # of a thousand values, one is a buffer's: as in ResNet-18
ROUND = RoundId(bytes(16), 1)
Update = NDArray[np.float32]
Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--values", type=int, default=11_200_000)
    parser.add_argument("--nodes", type=int, nargs="+", default=[3, 10])
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    buffers = given.values // BUFFER_SHARE
    groups = Groups(given.values - buffers, buffers)
    print(
        f"{given.values:,} values, {4 * given.values / 1e6:.1f} MB a vector, best of {given.runs}"
    )
    limits(groups, given.runs)
    for nodes in given.nodes:
        measure(groups, nodes, given.runs)


def limits(groups: Groups, runs: int) -> None:
    """What the hardware would need at least for each elementary pass."""
    vector = np.zeros(groups.size, dtype=np.uint32)
    other = np.ones_like(vector)
    part = np.empty(1 << 18, dtype=np.uint32)
    stream = Stream(Seed.fresh(), "limit")

    def expand() -> None:
        for _ in range(0, groups.size, len(part)):
            stream.fill(part.view(np.uint8))

    print("\nLimits")
    report("AES-CTR, one vector's length, in the cache", expand, runs, 4 * groups.size)
    report(
        "add one vector to another in memory",
        lambda: np.add(vector, other, vector),
        runs,
        4 * groups.size,
    )


def measure(groups: Groups, nodes: int, runs: int) -> None:
    names = [f"site-{at:03d}" for at in range(nodes)]
    threshold = default_threshold(nodes)
    survivors = names[:-1] if nodes > threshold else names
    print(f"\n{nodes} nodes, threshold {threshold}, {nodes - len(survivors)} dropped")
    trial = Trial(groups, names, survivors, threshold, runs)
    trial.advertise_and_share()
    trial.mask_and_sum()
    trial.confirm_and_reveal()
    trial.open()
    trial.print_bytes()


class Trial:
    """One round; each method is a stage of it and prints what it took."""

    def __init__(
        self, groups: Groups, names: list[str], survivors: list[str], threshold: int, runs: int
    ) -> None:
        self.groups, self.names, self.survivors = groups, names, survivors
        self.threshold, self.runs = threshold, runs
        self.first = names[0]
        self.updates = {name: random_update(groups) for name in survivors}
        self.identities = {n: Ed25519PrivateKey.from_private_bytes(fresh_bytes(32)) for n in names}
        self.states: dict[str, NodeState] = {}
        self.total = server.RunningSum(groups.size)

    def advertise_and_share(self) -> None:
        own = self.updates[self.first]
        self.report("node: exponents", lambda: exponents(own, self.groups), rate=1)
        started = {name: self.advertise(name) for name in self.names}
        states, self.ads = apart(started)
        self.roster = server.Roster.of(self.ads, self.verify)

        def share(name: str) -> tuple[NodeState, dict[str, bytes]]:
            return client.share(states[name], self.ads, self.verify)

        self.report("node: share keys", lambda: share(self.first))
        self.states, self.sealed = apart({name: share(name) for name in self.names})

    def advertise(self, name: str) -> tuple[NodeState, bytes]:
        update = self.updates.get(name, self.updates[self.first])  # who drops out has none
        return client.advertise(
            Seed.fresh(),
            round_id=ROUND,
            node=name,
            threshold=self.threshold,
            samples=100 + int.from_bytes(fresh_bytes(1)),
            groups=self.groups,
            exponents=exponents(update, self.groups),
            sign=self.identities[name].sign,
        )

    def mask_and_sum(self) -> None:
        before, count = self.states, len(self.names)

        def mask(name: str) -> tuple[NodeState, NDArray[np.uint32]]:
            return client.mask(before[name], server.inbox(self.sealed, name), self.updates[name])

        self.report(f"node: quantise, add {count} masks", lambda: mask(self.first), rate=count)
        print(f"    beside the two vectors: {beside(lambda: mask(self.first), self.groups):.1f} MB")
        self.states = {}
        for name in self.survivors:
            self.states[name], vector = mask(name)
            self.total.add(vector)
        stored = vector.tobytes()
        scratch = server.RunningSum(self.groups.size)
        self.report("owner: add one update to the sum", lambda: scratch.add(stored), rate=1)
        self.report("owner: the same from a file", lambda: scratch.add(io.BytesIO(stored)), rate=1)

    def confirm_and_reveal(self) -> None:
        self.outcome = server.Outcome.of(self.roster, self.names, self.survivors)
        states, signatures = apart(
            {
                name: client.confirm(state, self.survivors, self.identities[name].sign)
                for name, state in self.states.items()
            }
        )

        def reveal(name: str) -> bytes:
            return client.reveal(states[name], self.survivors, signatures, self.verify)[1]

        self.report("node: check confirmations, reveal", lambda: reveal(self.first))
        self.reveals = {name: reveal(name) for name in self.survivors}

    def open(self) -> None:
        roster, outcome, total = self.roster, self.outcome, self.total.total
        recovered = self.report(
            "owner: check reveals, recover keys",
            lambda: opening.recover(roster, self.sealed, outcome, self.reveals),
        )
        masks = len(outcome.survivors) * (1 + len(outcome.dropped))
        copy = total.copy()
        self.report(
            f"owner: remove {masks} masks",
            lambda: opening.remove_masks(copy, roster, outcome, recovered),
            rate=masks,
        )
        server.unmask(total, roster, self.sealed, outcome, self.reveals)
        mean = self.report("owner: decode", lambda: server.mean(total, roster, outcome), rate=1)
        self.compare(mean)

    def compare(self, mean: Update) -> None:
        """With the plain weighted mean, which takes one pass a node."""
        plain = WeightedMean(self.groups.size)
        for name in self.survivors:
            plain.add(self.updates[name], self.roster.entry(name).samples)
        largest = float(np.max(np.abs(mean.astype(np.float64) - plain.result())))
        given = (
            max(self.roster.exponents),
            len(self.survivors),
            self.roster.weight(self.survivors),
        )
        bound = tolerance(*given)
        print(f"    largest difference to the plain weighted mean {largest:.2e}:")
        print(f"    step {step(*given):.2e}, with the rounding of both to float32 {bound:.2e}")
        assert largest <= bound

    def print_bytes(self) -> None:
        update = wire.Header(wire.Kind.MASKED, ROUND, self.groups.size).frame_bytes
        name = self.first
        up = len(self.ads[name]) + size(self.sealed[name]) + 64 + len(self.reveals[name])
        names = sum(map(len, self.survivors))
        down = size(self.ads) + size(server.inbox(self.sealed, name))
        down += 2 * names + 64 * len(self.survivors)
        print(f"    bytes a node: update {update:,}; beside it {up:,} up, {down:,} down")

    def verify(self, node: str, message: bytes, signature: bytes) -> bool:
        try:
            self.identities[node].public_key().verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def report(self, what: str, action: Callable[[], Result], rate: int = 0) -> Result:
        return report(what, action, self.runs, 4 * self.groups.size * rate)


def apart(
    answers: dict[str, tuple[NodeState, Result]],
) -> tuple[dict[str, NodeState], dict[str, Result]]:
    """The new states, and what was sent."""
    return (
        {name: state for name, (state, _) in answers.items()},
        {name: message for name, (_, message) in answers.items()},
    )


def size(messages: Mapping[str, bytes]) -> int:
    return sum(len(name) + len(data) for name, data in messages.items())


def random_update(groups: Groups) -> Update:
    """Uniform in (-1/8, 1/8), from the operating system's generator."""
    words = Stream(Seed.fresh(), "benchmark").words(groups.size)
    return ((words / np.float32(2**32) - np.float32(0.5)) / np.float32(4)).astype(np.float32)


def report(what: str, action: Callable[[], Result], runs: int, volume: int) -> Result:
    """``volume``: bytes of vector or mask that are worked through, if that is what takes time."""
    wall = processor = float("inf")
    for _ in range(runs):
        starts = time.perf_counter(), time.process_time()
        result = action()
        wall = min(wall, time.perf_counter() - starts[0])
        processor = min(processor, time.process_time() - starts[1])
    rate = f"{volume / processor / 1e9:8.2f} GB/s" if volume else ""
    print(f"  {what:44s}{wall:9.4f} s{processor:9.4f} s{rate}")
    return result


def beside(action: Callable[[], object], groups: Groups) -> float:
    """Peak MB that an action allocates beyond the vector that it returns."""
    tracemalloc.start()
    action()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (peak - 4 * groups.size) / 1e6


if __name__ == "__main__":
    main()
