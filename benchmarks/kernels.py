"""Speed of the comparison kernels and ring products, and an inference's distance to the machine.

python -m benchmarks.kernels [--bits 21] [--blocks 8] [--runs 7] [--size 224]
Best of the runs: processor seconds of one thread, which other work on the machine disturbs less;
for the native kernel also one thread a core, and a GPU where there is one (keys and results carried
there and back), by the clock. Then what one encrypted inference of
ResNet-18 has to do (AES blocks, bytes of keys, products of ring elements) over what one core of
this machine does of each, and the parts' processor seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from numpy.typing import NDArray

from benchmarks.inference_parts import (
    DEAL,
    SESSION,
    join_halves,
    random_weights,
    resnet18,
    write_parts,
)
from primia import digits
from primia.fss import kernels
from primia.fss.geometry import BLOCK, KeyShape
from primia.fss.kernel import Evaluator, Generator, KeyBlock
from primia.fss.kernels import KernelName
from primia.mpc.material import Half
from primia.mpc.opening import write_opening
from primia.mpc.party import Client, Owner, PreparedModel, PreparedOpening
from primia.mpc.plan import Plan
from primia.prg import Seed, Stream

MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--bits", type=int, default=21)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--size", type=int, default=224)
    given = parser.parse_args()
    torch.set_num_threads(1)
    comparisons(KeyShape(given.bits), given.blocks, given.runs)
    limits(resnet18(given.size, "scores"), machine(given.runs))


def comparisons(shape: KeyShape, count: int, runs: int) -> None:
    print(f"comparisons of {shape.domain_bits} bits, {shape.block_bytes(BLOCK) / BLOCK:.0f} bytes")
    numbers = Numbers(shape, count)
    for name, threads in rows():
        generator, evaluator = kernels.generator(name, threads), kernels.evaluator(name, threads)
        alone = threads == 1 and name != "gpu"
        clock = time.process_time if alone else time.perf_counter
        made = best(lambda g=generator: numbers.generate(g), runs, clock)
        read = best(lambda e=evaluator: numbers.evaluate(e), runs, clock)
        total = count * BLOCK / 1e6
        print(f"  {name:8}{threads} thread(s)  generate {total / made:6.1f} M/s", end="")
        print(f"  evaluate {total / read:6.1f} M/s")


def rows() -> list[tuple[KernelName, int]]:
    """Kernels that this machine has, with their threads."""
    cores = os.cpu_count() or 1
    found: list[tuple[KernelName, int]] = [("numpy", 1)]
    if kernels.supported("native"):
        found += [("native", 1), ("native", cores)] if cores > 1 else [("native", 1)]
    if kernels.supported("gpu"):
        found.append(("gpu", 1))
    return found


class Numbers:
    """Blocks of keys, larger together than a cache."""

    def __init__(self, shape: KeyShape, count: int) -> None:
        self._shape = shape
        stream = Stream(Seed.fresh(), "numbers")
        self._alpha, self._x = (stream.words(BLOCK, shape.domain_bits) for _ in (0, 1))
        self._constant = stream.bits(BLOCK)
        first, second = (stream.words(4 * BLOCK).view(np.uint64).reshape(BLOCK, 2) for _ in (0, 1))
        self._roots = first, second
        size = shape.block_bytes(BLOCK)
        data = [np.zeros(size, dtype=np.uint8) for _ in range(count)]
        self._blocks = [KeyBlock.view(shape, BLOCK, part) for part in data]

    def generate(self, kernel: Generator) -> None:
        for block in self._blocks:
            kernel.generate(self._shape, self._alpha, self._constant, self._roots, block)

    def evaluate(self, kernel: Evaluator) -> None:
        for block in self._blocks:
            kernel.evaluate(self._shape, 0, self._x, self._roots[0], block)


def machine(runs: int) -> dict[str, float]:
    """What one core does in a second."""
    buffer, out = np.zeros(MIB, np.uint8), np.zeros(MIB + 15, np.uint8)
    permutation = Cipher(AES(bytes(16)), ECB()).encryptor()
    memory = np.ones(64 * MIB, dtype=np.uint64)
    side = 1024
    bytes_ = torch.ones((side, side), dtype=torch.int8)
    floats = torch.ones((side, side), dtype=torch.float64)
    product = 2 * side**3
    rates = {
        "AES blocks": MIB / 16 / best(lambda: permutation.update_into(buffer, out), 20 * runs),
        "bytes read": memory.nbytes / best(memory.max, runs),
        "bytes hashed": memory.nbytes / best(lambda: hashlib.sha256(memory), 1),
        "float64 operations": product / best(lambda: floats @ floats, runs),
    }
    if digits.available():
        rates["int8 operations"] = product / best(lambda: torch._int_mm(bytes_, bytes_), runs)
    print("one core of this machine, a second")
    for name, rate in rates.items():
        print(f"  {name:20}{rate / 1e9:10.2f} thousand million")
    return rates


def limits(plan: Plan, rates: dict[str, float]) -> None:
    print("ResNet-18, one image: processor seconds, and what the machine's limits allow")
    for name, (seconds, work) in measured(plan).items():
        least = {what: amount / rates[what] for what, amount in work.items() if what in rates}
        told = ", ".join(f"{work[what] / 1e6:.0f} M {what} {least[what]:.3f} s" for what in least)
        print(f"  {name:12}{seconds:7.3f} s; limit {sum(least.values()):.3f} s: {told}")


def measured(plan: Plan) -> dict[str, tuple[float, dict[str, float]]]:
    """Part -> its processor seconds and its work."""
    mask, weights = Seed.fresh(), random_weights(plan)
    model = PreparedModel(plan, weights)
    opening = PreparedOpening(plan, write_opening(plan, weights, mask))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_parts(plan, 1, mask, folder)  # once to warm up
        dealt = Meter()
        dealt.run(lambda: write_parts(plan, 1, mask, folder))
        join_halves(folder)
        halves = [Half.map(folder / str(i), plan, 1, i, DEAL) for i in (0, 1)]
        sides = [Meter(), Meter()]
        offline = Meter()
        owner = Owner(model, halves[0], SESSION, kernels.evaluator())
        client = Client(opening, halves[1], SESSION, kernels.evaluator())
        owner.offline(offline.run(client.offline))
        image = (Stream(Seed.fresh(), "image").words((1, *plan.input_shape)) / 2**31) - 1
        request: bytes | None = sides[1].run(lambda: client.first(image))
        while request is not None:
            sent = request
            answer = sides[0].run(lambda: owner.step(client.request_number, sent))  # noqa: B023
            request = sides[1].run(lambda: client.step(answer))  # noqa: B023
    keys, evaluated, generated = key_work(plan)
    return {
        "deal": (
            dealt.seconds,
            {
                "AES blocks": generated + dealt.stream_blocks,
                "bytes hashed": keys,
                **products(plan, full=True),
            },
        ),
        "P1 offline": (
            offline.seconds,
            {"AES blocks": offline.stream_blocks, **products(plan, full=True)},
        ),
        "P0 online": (
            sides[0].seconds,
            {
                "AES blocks": evaluated + sides[0].stream_blocks,
                "bytes read": keys,
                **products(plan, full=False),
            },
        ),
        "P1 online": (
            sides[1].seconds,
            {"AES blocks": evaluated + sides[1].stream_blocks, "bytes read": keys},
        ),
    }


class Meter:
    """Processor seconds, and the AES blocks that seeds are expanded by."""

    def __init__(self) -> None:
        self.seconds = self.stream_blocks = 0.0

    def run(self, work: Callable[[], bytes | None]) -> bytes | None:
        fill = Stream.fill

        def counted(stream: Stream, out: NDArray[np.uint8]) -> None:
            self.stream_blocks += out.nbytes / 16
            fill(stream, out)

        with mock.patch.object(Stream, "fill", counted):
            started = time.process_time()
            result = work()
            self.seconds += time.process_time() - started
        return result


def key_work(plan: Plan) -> tuple[float, float, float]:
    """Bytes of keys; AES blocks to evaluate them, at one party, and to generate them."""
    keys = evaluated = generated = 0.0
    for gate in plan.gates():
        keys += gate.key_bytes(1)
        evaluated += gate.comparisons * (gate.key.levels + 1)
        generated += gate.comparisons * (4 * gate.key.levels + 2)
    return keys, evaluated, generated


def products(plan: Plan, full: bool) -> dict[str, float]:
    """Multiplications and additions of the linear layers, in the way that this machine takes."""
    shapes = plan.shapes()
    count = 0.0
    for op, (_, shape) in zip(linear(plan), plan.linear(), strict=True):
        count += float(np.prod(shape)) * float(np.prod(shapes[op][1:], dtype=np.float64))
    by_bytes, by_floats = (10, 3) if full else (7, 2)
    if digits.available():
        return {"int8 operations": 2 * by_bytes * count}
    return {"float64 operations": 2 * by_floats * count}


def linear(plan: Plan) -> list[int]:
    """The numbers of the linear layers' results."""
    layers = {op.layer for op, _ in plan.linear()}
    return [i + 1 for i, op in enumerate(plan.ops) if getattr(op, "layer", None) in layers]


def best(
    work: Callable[[], object], runs: int, clock: Callable[[], float] = time.process_time
) -> float:
    """The shortest run, in seconds."""
    work()
    shortest = float("inf")
    for _ in range(runs):
        started = clock()
        work()
        shortest = min(shortest, clock() - started)
    return shortest


if __name__ == "__main__":
    main()
