"""Time and memory of every part of one encrypted inference, all parties in one process; then deals
a second, as a crypto provider fills its stock.

python -m benchmarks.inference_parts [--size 224] [--batch 1] [--result scores] [--runs 1]
ResNet-18 with random small weights. Two figures a part: wall-clock seconds, and processor seconds
of this process, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from primia import ring
from primia.chassis.machine import cores
from primia.fss import kernels
from primia.mpc.dealer import deal
from primia.mpc.material import PARTS, Half, half_size
from primia.mpc.opening import write_opening
from primia.mpc.operations import Operation
from primia.mpc.party import Client, Owner, PreparedModel, PreparedOpening
from primia.mpc.plan import (
    Add,
    Convolution,
    Dense,
    Flatten,
    MaxPool,
    Narrow,
    Plan,
    Relu,
    SumPool,
)
from primia.mpc.sinks import Sinks
from primia.mpc.weights import LayerWeights
from primia.prg import Seed, Stream

SESSION, DEAL = bytes(16), bytes(range(16))
WEIGHT_BITS = 15
CLASSES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--result", choices=("scores", "label"), default="scores")
    parser.add_argument("--runs", type=int, default=1)
    given = parser.parse_args()
    plan = resnet18(given.size, given.result)
    bill = plan.bill(given.batch)
    print(f"ResNet-18 at {given.size} x {given.size}, {given.batch} image(s), {given.result}")
    print(f"  {bill.comparisons:,} comparisons in {bill.requests} requests")
    for _ in range(given.runs):
        with tempfile.TemporaryDirectory() as folder:
            measure(plan, given.batch, Path(folder))
    print(f"  peak memory of the process {peak_mib():.0f} MiB")
    for workers in sorted({1, cores()}):
        with tempfile.TemporaryDirectory() as folder:
            rate = stock(plan, given.batch, workers, Path(folder))
        print(f"  D: stock, {workers} deal(s) at once     {rate:8.3f} deals a second")
    print(f"  peak memory of the process {peak_mib():.0f} MiB")


def measure(plan: Plan, batch: int, folder: Path) -> None:
    mask, weights = Seed.fresh(), random_weights(plan)
    model = timed("P0: prepare the weights", lambda: PreparedModel(plan, weights))
    data = timed("P0: mask the weights", lambda: write_opening(plan, weights, mask))
    timed("D: deal", lambda: write_parts(plan, batch, mask, folder))
    join_halves(folder)
    opening = timed("P1: prepare the masked weights", lambda: PreparedOpening(plan, data))
    halves = [Half.map(folder / str(i), plan, batch, i, DEAL) for i in (0, 1)]
    owner = Owner(model, halves[0], SESSION, kernels.evaluator())
    client = Client(opening, halves[1], SESSION, kernels.evaluator())
    offline = timed("P1: offline", client.offline)
    timed("P0: offline", lambda: owner.offline(offline))
    watches, sent, received = online(plan, batch, owner, client)
    for party, watch in enumerate(watches):
        print(f"  {f'P{party}: online':32}{watch}")
    sizes = [half_size(plan, batch, party) / 1e6 for party in (0, 1)]
    print(f"  opening {len(data) / 1e6:.1f} MB, halves {sizes[0]:.1f} and {sizes[1]:.1f} MB")
    print(f"  offline {len(offline) / 1e6:.1f} MB, online {sent / 1e6:.2f} MB up, ", end="")
    print(f"{received / 1e6:.2f} MB down")


def stock(plan: Plan, batch: int, workers: int, folder: Path) -> float:
    """Deals a second, ``workers`` at once of one thread each, written and thrown away."""
    mask, count = Seed.fresh(), 2 * workers

    def one(number: int) -> None:
        ring.load(1)
        own = folder / str(number)
        own.mkdir()
        write_parts(plan, batch, mask, own)
        shutil.rmtree(own)

    one(count)  # once to warm up
    started = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, range(count)))
    return count / (time.perf_counter() - started)


class Watch:
    """Wall-clock and processor seconds of what runs inside it, added up."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._start[0]
        self.processor += time.process_time() - self._start[1]

    def __str__(self) -> str:
        return f"{self.wall:8.3f} s wall {self.processor:8.3f} s processor"


def online(
    plan: Plan, batch: int, owner: Owner, client: Client
) -> tuple[tuple[Watch, Watch], int, int]:
    """The time of P0 and of P1, bytes of the requests and of the responses."""
    image = (Stream(Seed.fresh(), "image").words((batch, *plan.input_shape)) / 2**31) - 1
    server, node, sent, received = Watch(), Watch(), 0, 0
    with node:
        request: bytes | None = client.first(image)
    while request is not None:
        with server:
            response = owner.step(client.request_number, request)
        sent, received = sent + len(request), received + len(response)
        with node:
            request = client.step(response)
    assert owner.done
    assert len(client.result()) == batch
    return (server, node), sent, received


def write_parts(plan: Plan, batch: int, mask: Seed, folder: Path) -> None:
    with opened(folder) as files:
        deal(plan, batch, mask, DEAL, Sinks(*files))


def join_halves(folder: Path) -> None:
    common = (folder / "common").read_bytes()
    for party in (0, 1):
        (folder / str(party)).write_bytes((folder / f"p{party}").read_bytes() + common)


@contextmanager
def opened(folder: Path) -> Iterator[list[Any]]:
    files = [(folder / part).open("wb") for part in PARTS]
    yield files
    for file in files:
        file.close()


def timed(name: str, function: Callable[[], Any]) -> Any:
    watch = Watch()
    with watch:
        result = function()
    print(f"  {name:32}{watch}", flush=True)
    return result


def peak_mib() -> float:
    """Linux counts kibibytes, macOS bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def random_weights(plan: Plan) -> dict[str, LayerWeights]:
    stream = Stream(Seed.fresh(), "weights")
    result = {}
    for op, shape in plan.linear():
        weight = (stream.words(shape, 12).astype(np.int32)) - 2048
        result[op.layer] = LayerWeights(weight, np.zeros(shape[0], dtype=np.int32))
    return result


def resnet18(size: int, result: str) -> Plan:
    """BatchNorm folded, ReLU in the first pooling's last gate, 1/k in the last layer."""
    ops: list[Operation] = []

    def add(op: Operation) -> int:
        ops.append(op)
        return len(ops)

    def conv(x: int, channels: int, kernel: int, stride: int, padding: int) -> int:
        k, s, p = (kernel, kernel), (stride, stride), (padding, padding)
        return add(Convolution(f"conv{len(ops)}", x, channels, k, s, p, 1, WEIGHT_BITS))

    def relu(x: int) -> int:
        return add(Relu(f"relu{len(ops)}", add(Narrow(f"cut{len(ops)}", x, WEIGHT_BITS))))

    x = add(Narrow("cut", conv(0, 64, 7, 2, 3), WEIGHT_BITS))
    x = add(MaxPool("pool", x, (3, 3), (2, 2), (1, 1), relu=True))
    for stage, channels in enumerate((64, 128, 256, 512)):
        for stride in (2 if stage else 1, 1):
            y = conv(relu(conv(x, channels, 3, stride, 1)), channels, 3, 1, 1)
            skip, shift = (conv(x, channels, 1, 2, 0), 0) if stride == 2 else (x, WEIGHT_BITS)
            x = relu(add(Add(f"add{len(ops)}", y, skip, 0, shift)))
    side = -(-size // 32)
    x = add(Flatten("flatten", add(SumPool("average", x, (side, side), (1, 1), (0, 0)))))
    add(Dense("dense", x, CLASSES, WEIGHT_BITS))
    return Plan((3, size, size), 10, tuple(ops), result)


if __name__ == "__main__":
    main()
