"""Exact sums of integers: the vectors of statistics and counts, in Z_2^64.

Each node's values lie below 2^64 / n for the n nodes of the roster, so that the sum of any of them
is below 2^64 and wraps around nowhere: the opened sum is the sum of the integers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from primia.aggregation.errors import InvalidUpdate


def largest_integer(nodes: int) -> int:
    """The largest value that each of so many nodes may add."""
    return ((1 << 64) - 1) // nodes


def check_integers(values: NDArray[np.uint64], count: int, nodes: int) -> None:
    """``InvalidUpdate`` unless these are ``count`` integers whose sum over all nodes fits."""
    if values.dtype != np.uint64 or values.shape != (count,) or not values.flags.c_contiguous:
        raise InvalidUpdate(
            f"The values are {values.dtype} {values.shape}; uint64 ({count},) are needed."
        )
    over = values > np.uint64(largest_integer(nodes))
    if over.any():
        index = int(np.argmax(over))
        raise InvalidUpdate(
            f"The value at index {index} is too large to be summed over {nodes} nodes.", index=index
        )
