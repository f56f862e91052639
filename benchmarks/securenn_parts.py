"""What one inference by SecureNN costs its three parties: seconds, processor seconds, bytes.

python -m benchmarks.securenn_parts [--size 224] [--batch 1] [--runs 3]
ResNet-18 with random weights; each party a process of one arithmetic thread, joined by socket pairs
without HTTP or delay. The run of the least time is shown. Through the real services:
benchmarks.inference --only securenn.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import resource
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.queues import Queue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.inference_parts import random_weights, resnet18
from primia.mpc.plan import Plan
from primia.mpc.securenn.assistant import Assistant
from primia.mpc.securenn.driver import carry
from primia.mpc.securenn.layout import steps
from primia.mpc.securenn.prepared import PreparedModel
from primia.mpc.securenn.roles import Client, Owner
from primia.mpc.weights import LayerWeights
from primia.prg import Seed

NAMES = ("P0 model owner", "P1 data node", "P2 crypto provider")
Weights = Mapping[str, LayerWeights]


class Link:
    """One end of a socket pair; a thread sends, so that nobody waits for a reader."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._queue: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self.sent = 0
        threading.Thread(target=self._send, daemon=True).start()

    def _send(self) -> None:
        while True:
            self._end.sendall(self._queue.get())

    def send(self, data: NDArray[Any]) -> None:
        self.sent += data.nbytes
        self._queue.put(data.reshape(-1).view(np.uint8).data)

    def receive(self, size: int) -> memoryview:
        view = memoryview(bytearray(size))
        at = 0
        while at < size:
            read = self._end.recv_into(view[at:])
            if not read:
                raise ConnectionError("A party has ended.")
            at += read
        return view


@dataclass(frozen=True)
class Part:
    """``prepared`` and ``online``: seconds, processor seconds, bytes sent."""

    role: int
    prepared: tuple[float, float, int]
    online: tuple[float, float, int]
    memory: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    plan = resnet18(given.size, "scores")
    weights = random_weights(plan)
    found = [once(plan, weights, given.batch) for _ in range(given.runs)]
    parts = min(found, key=lambda parts: parts[1].online[0])
    gates = list(steps(plan, given.batch))
    print(f"{len(gates)} nonlinear steps, {sum(step.count for step in gates):,} comparisons")
    print(f"{'':20}{'prepare: s':>12}{'cpu':>8}{'MB':>8}{'online: s':>12}{'cpu':>8}{'MB':>8}")
    for part in parts:
        cells = "".join(
            f"{wall:12.2f}{cpu:8.2f}{sent / 1e6:8.1f}"
            for wall, cpu, sent in (part.prepared, part.online)
        )
        print(f"{NAMES[part.role]:20}{cells}   peak {part.memory >> 20} MiB")
    print(f"online in all: {sum(part.online[2] for part in parts):,} bytes")


def once(plan: Plan, weights: Weights, batch: int) -> list[Part]:
    ends: dict[tuple[int, int], socket.socket] = {}
    for a, b in ((0, 1), (0, 2), (1, 2)):
        ends[a, b], ends[b, a] = socket.socketpair()
    context = multiprocessing.get_context("fork")
    results: Queue[Part] = context.Queue()
    mask = Seed.fresh()
    processes = [
        context.Process(target=party, args=(role, plan, weights, batch, mask, ends, results))
        for role in range(3)
    ]
    for process in processes:
        process.start()
    parts = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    for end in ends.values():
        end.close()
    return sorted(parts, key=lambda part: part.role)


def party(
    role: int,
    plan: Plan,
    weights: Weights,
    batch: int,
    mask: Seed,
    ends: Mapping[tuple[int, int], socket.socket],
    results: Queue[Part],
) -> None:
    torch.set_num_threads(1)
    links = {peer: Link(ends[role, peer]) for peer in range(3) if peer != role}
    images = np.random.default_rng(1).normal(size=(batch, *plan.input_shape)).astype(np.float32)  # noqa: TID251 - an image to time, no secret
    made: Any = (
        Owner(PreparedModel(plan, weights), batch, mask),
        Client(plan, batch),
        Assistant(plan, batch, mask),
    )[role]
    talks = made.prepare(), made.run(images) if role == 1 else made.run()
    phases = []
    for talk in talks:
        wall, cpu = time.perf_counter(), time.process_time()
        before = sum(link.sent for link in links.values())
        carry(talk, links)
        spent = time.perf_counter() - wall, time.process_time() - cpu
        phases.append((*spent, sum(link.sent for link in links.values()) - before))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    results.put(Part(role, phases[0], phases[1], memory))
    time.sleep(1)  # what was sent last is on its way


if __name__ == "__main__":
    main()
