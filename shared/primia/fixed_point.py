"""Real numbers as ring elements: round(x 2^bits) in two's complement."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from primia.errors import InvalidInput
from primia.ring import BITS, Real, Ring

# Two bits of headroom below the sign, as the compiler keeps them everywhere.
LIMIT = 1 << (BITS - 3)


def encode(values: NDArray[Any], fraction_bits: int) -> Ring:
    """Round half to even; refuses what is not finite and |x| 2^bits >= 2^29."""
    scaled = np.rint(np.asarray(values, dtype=np.float64) * (1 << fraction_bits))
    if not np.isfinite(scaled).all():
        raise InvalidInput("A value to encode is not a finite number.")
    if np.abs(scaled).max(initial=0) >= LIMIT:
        raise InvalidInput(
            f"A value to encode is {LIMIT >> fraction_bits} or more.",
            hint="Normalise the input as in training.",
        )
    return scaled.astype(np.int64).astype(np.uint32)


def decode(values: Ring, fraction_bits: int) -> Real:
    """The reals of two's complement ring elements, exactly."""
    return values.view(np.int32).astype(np.float64) / (1 << fraction_bits)
