"""Kernels compiled for the processor that they run on: machine code from LLVM, no compiler needed.

A kernel is emitted for whole vectors (as wide as the processor has AES instructions) and once more
for single words, which takes what is left. Compiled once a process, at first use, in about a tenth
of a second; nothing is written to disk. The machine code runs without Python's lock.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Callable, Iterator
from threading import Lock, Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primia.errors import InvalidInput

# Comparisons that go through a level together: their nodes stay in the first-level cache.
CHUNK = 512
# Below this a second thread costs more than it takes over.
_MIN_SHARE = 4096
_SPEED = 3
# Two threads that compile the same kernel would each get one, and free the one that is not kept.
_LOCK = Lock()

Emit = Callable[[Any, str, int], None]  # module, name of the function, words in a vector
Run = Callable[..., None]


@functools.cache
def why_not() -> str:
    """Why there is no kernel for this machine; empty where there is one."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"there is a native kernel for x86-64 alone, and this is {platform.machine()}"
    try:
        import llvmlite.binding as llvm
    except (ImportError, OSError) as error:
        return f"llvmlite, which makes its code, cannot be loaded ({type(error).__name__})"
    if not llvm.get_host_cpu_features().get("aes", False):
        return "this processor, or its virtual machine, has no AES instructions (AES-NI)"
    return ""


@functools.cache
def vector_words() -> int:
    """128-bit words in the widest vector with AES instructions; 0: no kernel for this machine."""
    if why_not():
        return 0
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    if not features.get("vaes", False):
        return 1
    return 4 if features.get("avx512f", False) else 2


class Compiled:
    """``run(start, stop, *arguments)`` works on a slice of a block, over all ``threads``."""

    def __init__(self, emit: Emit, arguments: int, width: int, threads: int) -> None:
        self._width = width
        self._wide, self._single = (_function(emit, w, arguments) for w in (width, 1))
        self._threads = threads

    def run(self, count: int, *arguments: int) -> None:
        own, *others = _shares(count, self._threads)
        helpers = [Thread(target=self._part, args=(*share, *arguments)) for share in others]
        for helper in helpers:
            helper.start()
        try:
            self._part(*own, *arguments)
        finally:
            for helper in helpers:  # they use the caller's arrays
                helper.join()

    def _part(self, start: int, stop: int, *arguments: int) -> None:
        whole = stop - (stop - start) % self._width
        self._wide(start, whole, *arguments)
        self._single(whole, stop, *arguments)


def _shares(count: int, threads: int) -> Iterator[tuple[int, int]]:
    """Slices of ``count``, a multiple of a chunk each but for the last."""
    share = max(-(-count // threads), _MIN_SHARE)
    share += -share % CHUNK
    yield 0, min(share, count)
    for start in range(share, count, share):
        yield start, min(start + share, count)


def _function(emit: Emit, width: int, arguments: int) -> Run:
    """All arguments are 64-bit integers; addresses among them."""
    with _LOCK:
        engine = _engine(emit, width)
    signature = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * (arguments + 2))
    run: Run = signature(engine.get_function_address("kernel"))
    return run


@functools.cache
def _engine(emit: Emit, width: int) -> Any:
    """Compiled once, under the lock, and never freed: the functions live in its memory."""
    import llvmlite.binding as llvm
    from llvmlite import ir

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = ir.Module("primia")
    module.triple = llvm.get_process_triple()
    emit(module, "kernel", width)
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=_SPEED,
        jit=True,
    )
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    options = llvm.create_pipeline_tuning_options(_SPEED)
    options.loop_unrolling = False  # the processor overlaps the iterations by itself
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(parsed, builder)
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    return engine


def address(array: NDArray[Any], dtype: type[np.generic], size: int) -> int:
    """Where the kernel finds an array of ``size`` contiguous elements."""
    if array.dtype != dtype or array.size != size or not array.flags.c_contiguous:
        raise InvalidInput("A kernel takes contiguous arrays of its own types and sizes.")
    return int(array.ctypes.data)


def require() -> int:
    """As ``vector_words``, or InvalidInput."""
    if not (width := vector_words()):
        raise InvalidInput("This machine has no AES instructions that the native kernel knows.")
    return width
