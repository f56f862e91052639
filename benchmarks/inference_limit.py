"""How far an inference is from what this machine can do: AES blocks, bytes, operations.

Processor seconds of one thread, all parties in this process (benchmarks.kernels), over the sum of
what each kind of work would take at the machine's own rate of it.
"""

from __future__ import annotations

import torch

from benchmarks import kernels
from benchmarks.bed.workbench import Bench
from benchmarks.inference_parts import resnet18

_RUNS = 3


def limit(bench: Bench) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = kernels.machine(_RUNS)
        found = kernels.measured(resnet18(bench.given.size, "scores"))
    finally:
        torch.set_num_threads(threads)
    for name, rate in rates.items():
        bench.figure("limit", f"{name} a second, one core", "10^9", [rate / 1e9])
    for part, (seconds, work) in found.items():
        least = {what: amount / rates[what] for what, amount in work.items() if what in rates}
        told = ", ".join(
            f"{work[what] / 1e6:.0f} M {what} {spent:.3f} s" for what, spent in least.items()
        )
        bench.figure("limit", f"{part}, measured", "s", [seconds], note="processor time, 1 thread")
        bench.figure(
            "limit", f"{part}, at the machine's rates", "s", [sum(least.values())], note=told
        )
        bench.figure("limit", f"{part}, over the limit", "times", [seconds / sum(least.values())])
