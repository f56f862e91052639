"""Client-level differential privacy inside the masked sum: each node clips its update and adds its
part of the noise before it masks, so that nobody ever holds the sum without noise.

After Kairouz, Liu and Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning
with Secure Aggregation" (ICML 2021), with rounded normals (primia.noise) in the place of discrete
Gaussians: of both the sum of several is that of one within exp(-2 π² s²) for deviations s of a few
units, and here s has thousands. All nodes weigh the same. Node i of n adds

    v_i = round(Δ_i 2^F / n) + round(N(0, (σ S)² / t)),      ‖Δ_i‖ <= C,   S = C 2^F / n + √d / 2

in units of the ring (d values): the sum over at least t survivors has noise of deviation σ S or
more, and one node moves it by at most S. Nodes that tell the owner their own noise take their part
of it away: with c such nodes the multiplier is σ √((t - c) / t).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from primia.aggregation.errors import InvalidUpdate
from primia.aggregation.quantise import MAX_EXPONENT, MIN_EXPONENT, fraction_bits
from primia.errors import InvalidInput
from primia.noise import rounded_normals
from primia.prg import Stream

# No rounded normal lies further out than this many deviations.
_TAIL = 8.7
# Room for the roundings in S and of n values, for up to 2^31 values and 250 nodes.
_SLACK = 1.1
_CHUNK = 1 << 18


def clip(update: NDArray[np.float32], norm: float) -> NDArray[np.float32]:
    """The update, shortened to an L2 norm of at most ``norm`` (a new vector).

    Raises ``InvalidUpdate`` if it is not finite.
    """
    length = math.sqrt(
        sum(_square(update[at : at + _CHUNK]) for at in range(0, len(update), _CHUNK))
    )
    if not math.isfinite(length):
        raise InvalidUpdate("The update is not finite (NaN or infinity).")
    # float32 rounds up by at most 2^-24 of a value.
    factor = min(1.0, norm / length * (1 - 2.0**-22)) if length else 1.0
    return (update * np.float64(factor)).astype(np.float32)


def _square(values: NDArray[np.float32]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        wide = values.astype(np.float64)
        return float(wide @ wide)


def exponent(norm: float, multiplier: float, threshold: int) -> int:
    """The round's exponent, which leaves room for all updates and all noise: nothing overflows.

    Raises ``InvalidInput`` for a norm or noise that no exponent takes.
    """
    reach = norm * (1 + _TAIL * multiplier / math.sqrt(threshold)) * _SLACK
    found = math.frexp(reach)[1]
    if not MIN_EXPONENT <= found <= MAX_EXPONENT:
        raise InvalidInput(f"A clip norm of {norm:g} with noise of {multiplier:g} does not fit.")
    return found


def deviation(norm: float, multiplier: float, *, values: int, nodes: int, threshold: int) -> float:
    """Of each node's noise, in units of the ring."""
    scale = 2.0 ** fraction_bits(exponent(norm, multiplier, threshold))
    sensitivity = norm * scale / nodes + math.sqrt(values) / 2
    return multiplier * sensitivity / math.sqrt(threshold)


def add_noise(vector: NDArray[np.uint32], stream: Stream, sigma: float) -> None:
    """Add rounded normals of this deviation to a vector of the ring, in place."""
    for start in range(0, len(vector), _CHUNK):
        part = vector[start : start + _CHUNK]
        noise = rounded_normals(stream, len(part), sigma)
        part += (noise & 0xFFFFFFFF).astype(np.uint32)
