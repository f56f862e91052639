"""Float32 updates as fixed-point numbers in Z_2^32, weighted by samples, and back.

An update is the change that local training made to the round's global model. Group g of the vector
(parameters, buffers) has a public exponent e_g with |Δ| < 2^e_g for every node: each node proposes
``exponents`` of its own update, the round takes the maximum, so nothing is clipped. Node i of a
round with N = Σ n_i samples encodes

    v_i = round(n_i/N · Δ_i · 2^F),      F = 31 - e_g.

No overflow: float32 has 24 bits, so |Δ| <= (1 - 2^-24) 2^e and |Σ v_i| <= 2^31 - 2^7 + n (1/2 +
2^-20) < 2^31 for n <= 250 nodes (``terms.MAX_NODES``). With F one larger, a change near 2^e would
overflow: 32 bits allow no more. ``step`` bounds the error of the opened mean. Arithmetic is float64
in chunks of 512 KiB.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from primia.aggregation.errors import InvalidUpdate
from primia.aggregation.terms import GroupName, Groups

# Changes below 2^-40 are far below float32's resolution of any weight; a change of 2^40 means that
# training diverged.
MIN_EXPONENT = -40
MAX_EXPONENT = 40
_SIGNED_BITS = 31
_CHUNK = 1 << 16

Exponents = tuple[int, int]  # of the parameters, of the buffers


def exponents(update: NDArray[np.float32], groups: Groups) -> Exponents:
    """The least e_g >= MIN_EXPONENT with |Δ| < 2^e_g in each group.

    Raises ``InvalidUpdate`` for another dtype or shape, NaN, infinity, or a change past
    2^MAX_EXPONENT; the detail names the group and the index in the vector.
    """
    check_update(update, groups)
    found = []
    for name, span in groups.spans():
        largest = max((_largest(update, name, part) for part in _chunks(span)), default=0.0)
        exponent = math.frexp(largest)[1] if largest else MIN_EXPONENT
        if exponent > MAX_EXPONENT:
            raise InvalidUpdate(
                f"A change of {largest:.3g} in the {name} is too large to aggregate.",
                hint="Training has probably diverged: lower the learning rate.",
            )
        found.append(max(exponent, MIN_EXPONENT))
    return found[0], found[1]


def largest_exponents(proposals: Sequence[Exponents]) -> Exponents:
    """The exponents of the round: in each group the largest that a node needs."""
    return max(each[0] for each in proposals), max(each[1] for each in proposals)


def fraction_bits(exponent: int) -> int:
    """F: one unit of the ring is 2^-F."""
    return _SIGNED_BITS - exponent


def step(exponent: int, survivors: int, weight: float = 1.0) -> float:
    """The quantisation step: a bound on |opened mean - exact weighted mean| of one group's values.

    ``weight`` is the survivors' part of the round's samples, Σ_survivors n_i / N. Each survivor
    rounds by at most 1/2 unit; the three float64 roundings (of n_i 2^F / N, of the product, of the
    decoded quotient) add less than 2^-20 units each survivor.
    """
    unit = math.ldexp(1.0, -fraction_bits(exponent))
    return survivors * (0.5 + 2.0**-20) * unit / weight


def tolerance(exponent: int, survivors: int, weight: float = 1.0) -> float:
    """``step`` and the rounding of two float32 results (each at most 2^(e - 25)) on top."""
    return step(exponent, survivors, weight) + math.ldexp(1.0, exponent - 24)


def encode(
    update: NDArray[np.float32],
    groups: Groups,
    bounds: Exponents,
    samples: int,
    total: int,
    out: NDArray[np.uint32],
) -> None:
    """Write round(samples/total · Δ · 2^F) mod 2^32 into ``out``, which may be ``update``'s memory.

    Raises ``InvalidUpdate`` like ``exponents``, and if a value exceeds the round's ``bounds``.
    """
    check_update(update, groups)
    if out.dtype != np.dtype("<u4") or out.shape != update.shape:
        raise ValueError("the encoded update goes into a uint32 vector of the update's length")
    signed = out.view(np.int32)
    buffer = np.empty(min(_CHUNK, groups.size))
    for (name, span), exponent in zip(groups.spans(), bounds, strict=True):
        factor = samples * math.ldexp(1.0, fraction_bits(exponent)) / total
        for part in _chunks(span):
            if _largest(update, name, part) >= math.ldexp(1.0, exponent):
                raise InvalidUpdate(
                    f"A change in the {name} exceeds the round's bound of 2^{exponent}.",
                    hint="The exponents must be computed from the same update.",
                )
            work = buffer[: part.stop - part.start]
            np.multiply(update[part], factor, out=work, dtype=np.float64)
            np.copyto(signed[part], np.rint(work, out=work), casting="unsafe")


def decode(
    total: NDArray[np.uint32],
    groups: Groups,
    bounds: Exponents,
    weight: float,
    out: NDArray[np.float32],
) -> None:
    """Write (total as signed) · 2^-F / weight into ``out``, which may be ``total``'s memory."""
    signed = total.view(np.int32)
    buffer = np.empty(min(_CHUNK, groups.size))
    for (_, span), exponent in zip(groups.spans(), bounds, strict=True):
        divisor = math.ldexp(weight, fraction_bits(exponent))
        for part in _chunks(span):
            work = buffer[: part.stop - part.start]
            np.divide(signed[part], divisor, out=work)
            np.copyto(out[part], work, casting="same_kind")


def check_update(update: NDArray[np.float32], groups: Groups) -> None:
    """``InvalidUpdate`` unless this is a contiguous float32 vector of the groups' size."""
    if update.dtype != np.float32 or update.shape != (groups.size,):
        raise InvalidUpdate(
            f"The update is {update.dtype} {update.shape}; float32 ({groups.size},) is needed."
        )
    if not update.flags.c_contiguous:
        raise InvalidUpdate("The update is not contiguous in memory.")


def _largest(update: NDArray[np.float32], name: GroupName, part: slice) -> float:
    values = update[part]
    largest = max(float(values.max()), -float(values.min()))
    if not math.isfinite(largest):  # of NaN, both are NaN
        index = part.start + int(np.argmin(np.isfinite(values)))
        raise InvalidUpdate(
            f"The update is not finite (NaN or infinity) in the {name}, at index {index}.",
            hint="Training has diverged or met a broken image: lower the learning rate.",
            index=index,
            group=name,
        )
    return largest


def _chunks(span: slice) -> Iterator[slice]:
    for start in range(span.start, span.stop, _CHUNK):
        yield slice(start, min(start + _CHUNK, span.stop))
