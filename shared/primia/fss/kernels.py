"""Which kernel computes the comparisons: chosen at run time, the results the same to the bit.

    numpy    any machine: OpenSSL's AES, level by level over a block
    native   x86-64 with AES-NI: machine code made at first use; VAES and AVX-512 where they are
    gpu      an NVIDIA GPU, by PyTorch and Triton
    auto     native where this machine can, else numpy

A kernel's modules are imported when it is asked for: a party never loads a generator.
"""

from __future__ import annotations

from typing import Literal

from primia.fss.kernel import Evaluator, Generator
from primia.fss.native import vector_words, why_not

KernelName = Literal["auto", "numpy", "native", "gpu"]


def resolve(name: KernelName) -> KernelName:
    """What ``auto`` stands for on this machine; other names stay what they are."""
    if name != "auto":
        return name
    return "native" if vector_words() else "numpy"


def chosen(name: KernelName) -> str:
    """What computes the comparisons here and, where ``auto`` took the slower one, why; a line."""
    found = resolve(name)
    if name != "auto":
        return f"{found}, as the settings say"
    if found == "native":
        return f"native, {vector_words()} words of AES at a time"
    return f"numpy, about a ninth as fast as native: {why_not()}"


def supported(name: KernelName) -> bool:
    """Whether this machine has what the kernel runs on."""
    if name == "native":
        return vector_words() > 0
    if name == "gpu":
        from primia.fss import gpu

        return gpu.available()
    return True


def evaluator(name: KernelName = "auto", threads: int = 1) -> Evaluator:
    """One a session. ``threads``: how many work on a block (native alone).

    Raises InvalidInput for ``native`` on a machine that it does not know.
    """
    if resolve(name) == "native":
        from primia.fss.native_evaluation import NativeEvaluator

        return NativeEvaluator(threads)
    if name == "gpu":
        from primia.fss.gpu import GpuEvaluator

        return GpuEvaluator()
    from primia.fss.evaluation import NumpyEvaluator

    return NumpyEvaluator()


def generator(name: KernelName = "auto", threads: int = 1) -> Generator:
    """As ``evaluator``."""
    if resolve(name) == "native":
        from primia.fss.native_generation import NativeGenerator

        return NativeGenerator(threads)
    if name == "gpu":
        from primia.fss.gpu import GpuGenerator

        return GpuGenerator()
    from primia.fss.generation import NumpyGenerator

    return NumpyGenerator()
