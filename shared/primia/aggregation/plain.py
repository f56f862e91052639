"""The plain weighted mean, for runs without secure aggregation: Σ n_i Δ_i / Σ n_i in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primia.aggregation.errors import InvalidUpdate
from primia.aggregation.terms import MAX_SAMPLES, MAX_VALUES
from primia.aggregation.wire import Payload, chunks, side_by_side
from primia.errors import InvalidInput

_CHUNK = 1 << 16


class WeightedMean:
    """One running sum of 8 bytes a value; ``total`` and ``samples`` may be stored and given back.

    An ``add`` that raises leaves the sum undefined: store it together with the names of the nodes
    that it contains, and go back to what is stored.
    """

    def __init__(
        self, count: int, total: NDArray[np.float64] | None = None, samples: int = 0
    ) -> None:
        if not 1 <= count <= MAX_VALUES:
            raise InvalidInput(f"A mean of {count} values is not accepted.")
        self.total = np.zeros(count, dtype="<f8") if total is None else total
        self.samples = samples
        if self.total.shape != (count,) or self.total.dtype != np.dtype("<f8"):
            raise InvalidInput(f"The stored sum is not a float64 vector of {count} values.")

    def add(self, payload: Payload, samples: int) -> None:
        """Add n_i Δ_i for a float32 payload.

        Raises ``MalformedMessage`` for another length, ``InvalidUpdate`` (naming the index) for NaN
        or infinity, ``InvalidInput`` for a number of samples that is none.
        """
        _check_samples(samples)
        for part, values in chunks(payload, len(self.total), "<f4"):
            self.total[part] += _weighted(values, samples, part.start)
        self.samples += samples

    def result(self, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The mean; raises ``InvalidInput`` if nothing was added.

        ``out`` may be the first half of the sum's own memory: it is written behind what is read.
        """
        if not self.samples:
            raise InvalidInput("A mean of no updates does not exist.")
        count = len(self.total)
        mean = np.empty(count, dtype=np.float32) if out is None else out
        for start in range(0, count, _CHUNK):
            part = slice(start, start + _CHUNK)
            values = self.total[part] / self.samples  # a copy, before anything is written
            mean[part] = values
        return mean


def weighted_sum(
    count: int, updates: Sequence[tuple[Payload, int]], before: Payload | None = None
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Σ n_i Δ_i of ``count`` values in pieces, of all updates (Δ_i, n_i) at once: (where, sum).

    ``before``: a sum to begin with, float64. The sum is that of ``WeightedMean.add``, bit for bit,
    in the order of the updates; a piece is overwritten by the next one. Raises as ``add`` does.
    """
    for _, samples in updates:
        _check_samples(samples)
    payloads = [payload for payload, _ in updates]
    for part, total, pieces in side_by_side(count, payloads, "<f4", before, "<f8"):
        for values, (_, samples) in zip(pieces, updates, strict=True):
            total += _weighted(values, samples, part.start)
        yield part, total


def _weighted(values: NDArray[Any], samples: int, start: int) -> NDArray[np.float64]:
    finite = np.isfinite(values)
    if not finite.all():
        index = start + int(np.argmin(finite))
        raise InvalidUpdate(
            f"The update is not finite (NaN or infinity) at index {index}.", index=index
        )
    weighted: NDArray[np.float64] = np.multiply(values, samples, dtype=np.float64)  # (<= 2^18,)
    return weighted


def _check_samples(samples: int) -> None:
    if not 1 <= samples <= MAX_SAMPLES:
        raise InvalidInput(f"An update over {samples} samples cannot be weighted.")
