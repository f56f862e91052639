"""Which kernel computes the comparisons: chosen at run time, the results the same to the bit.

    numpy    any machine: OpenSSL's AES, level by level over a block
    native   x86-64 with AES-NI: machine code made at first use; VAES and AVX-512 where they are
    auto     native where this machine can, else numpy

A kernel's modules are imported when it is asked for: a party never loads a generator.
"""

from __future__ import annotations

from typing import Literal

from primia.fss.kernel import Evaluator, Generator
from primia.fss.native import vector_words

KernelName = Literal["auto", "numpy", "native"]


def resolve(name: KernelName) -> KernelName:
    """What ``auto`` stands for on this machine; other names stay what they are."""
    if name != "auto":
        return name
    return "native" if vector_words() else "numpy"


def supported(name: KernelName) -> bool:
    return name != "native" or vector_words() > 0


def evaluator(name: KernelName = "auto", threads: int = 1) -> Evaluator:
    """One a session. ``threads``: how many work on a block (numpy: always one).

    Raises InvalidInput for ``native`` on a machine that it does not know.
    """
    if resolve(name) == "native":
        from primia.fss.native_evaluation import NativeEvaluator

        return NativeEvaluator(threads)
    from primia.fss.evaluation import NumpyEvaluator

    return NumpyEvaluator()


def generator(name: KernelName = "auto", threads: int = 1) -> Generator:
    """As ``evaluator``."""
    if resolve(name) == "native":
        from primia.fss.native_generation import NativeGenerator

        return NativeGenerator(threads)
    from primia.fss.generation import NumpyGenerator

    return NumpyGenerator()
