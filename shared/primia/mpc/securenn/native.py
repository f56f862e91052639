"""Private comparison in machine code, where this machine can; the same to the bit.

Emitted by ``native_kernels`` for whole vectors of bytes, as the comparison keys' kernels are
(``primia.fss.native``), and loaded at first use. Without it ``compare`` and ``field`` use NumPy.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from primia.fss.native import Compiled, address, vector_words

Octets = NDArray[np.uint8]

# Bytes in a vector: LLVM splits it where the processor has none of this width.
_WIDTH = 64


def available() -> bool:
    return vector_words() > 0


@functools.cache
def _masking() -> Compiled:
    from primia.mpc.securenn import native_kernels as kernels

    return Compiled(kernels.emit_masking, kernels.MASKING_ARGUMENTS, _WIDTH, 1)


@functools.cache
def _digits(base: int) -> Compiled:
    from primia.mpc.securenn import native_kernels as kernels

    emit = {66: kernels.emit_digits_66, 67: kernels.emit_digits_67}[base]
    return Compiled(emit, 1, _WIDTH // 2, 1)


def prepare() -> None:
    """Compile what is there to compile, before it is waited for."""
    if available():
        _masking()
        for base in (66, 67):
            _digits(base)


def split_digits(words: NDArray[np.uint16], base: int) -> None:
    """In place: each word becomes its two lowest digits to base 66 or 67, in its two bytes."""
    _digits(base).run(len(words), address(words, np.uint16, len(words)))


def mask_differences(
    party: int,
    x: Octets,
    q: Octets,
    beta: Octets,
    factors: Octets,
    zeros: Octets,
    orders: Octets,
) -> Octets:
    """``compare.masked_differences`` without a q that wraps. All (width, n), the bits q too; beta
    and orders (n,)."""
    rows, count = x.shape
    out = np.empty((rows, count), np.uint8)
    grids = (np.ascontiguousarray(grid) for grid in (x, q, factors, zeros))
    held = [*grids, np.ascontiguousarray(beta), np.ascontiguousarray(orders)]
    sizes = [rows * count] * 4 + [count] * 2
    given = [address(array, np.uint8, size) for array, size in zip(held, sizes, strict=True)]
    _masking().run(count, *given, address(out, np.uint8, rows * count), count, rows, party)
    return out
