"""Private comparison (SecureNN, algorithm 3): is x > r, x shared bit by bit, r known to P0 and P1?

P0 and P1 hold shares of the bits of x in Z_67, and r and a random bit beta that P2 does not know.
P2 learns beta xor [x > r] and nothing else: of the differences c_i, masked with a random factor and
in random order, one is zero exactly if that bit is 1, and all others are uniform and not zero.

Two departures that leave P2's view as it is in the paper. The order: the differences at i are sent
at place i xor rho for a uniform rho, which puts the zero at a uniform place; all others are
uniform and independent already. And P0 and P1 add shares of zero to what they send: P2 has dealt
the bits' shares itself, and the quotient of the two products with one factor s_i would tell it c_i.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from primia.mpc.securenn import field, native
from primia.mpc.securenn.field import PRIME, Field
from primia.mpc.securenn.ring64 import Words
from primia.prg import Seed, Stream


@dataclass(frozen=True, eq=False, repr=False)
class Blind:
    """Common randomness of P0 and P1 for one block: factors s and shares of zero, (width, n), and
    orders rho, (n,). It depends on no value, so it is drawn while a message is on its way."""

    factors: Field
    zeros: Field
    orders: Field


def draw_blinds(
    common: Seed, label: str, sizes: Iterable[int], width: int = field.WIDTH
) -> list[Blind]:
    """For blocks of these sizes."""
    names = ("factors", "zeros", "orders")
    factors, zeros, orders = (Stream(common, f"{label}/{name}") for name in names)
    return [
        Blind(
            field.uniform_nonzero(factors, (width, size)),
            field.uniform(zeros, (width, size)),
            np.frombuffer(orders.raw(size), np.uint8),
        )
        for size in sizes
    ]


def masked_differences(party: int, x: Field, r: Words, beta: Field, blind: Blind) -> Field:
    """Steps 1 to 7: what ``party`` sends to P2.

    x: shares of the bits, (width, n), the width a power of two; r: (n,), below 2^width;
    beta: (n,), 0 or 1. Returns (width, n), uniform in Z_67.
    """
    width = len(x)
    factors, zeros = blind.factors, blind.zeros
    if native.available() and not _wrapping(r, beta, width).any():
        q = field.bits_of(r + beta, width)
        return native.mask_differences(party, x, q, beta, factors, zeros, blind.orders)
    masked = field.multiply(differences(party, x, r, beta), factors)
    masked = field.subtract(masked, zeros) if party else field.add(masked, zeros)
    _reorder(masked, blind.orders, width)
    return masked


def differences(party: int, x: Field, r: Words, beta: Field) -> Field:
    """Shares of c_i, (width, n): one of them is 0 if beta xor [x > r], else none.

    With t = r + 1, q = t where beta else r, and w = x xor q, bit by bit:
    c_i = 1 + (sum of w_k for k > i) + (x_i - q_i), its last term negative where beta = 0.
    That term is w_i, or -w_i where q_i = beta.
    """
    width, count = x.shape
    q = field.bits_of(r + beta, width)
    equal = q ^ (beta ^ np.uint8(1))
    w = _select(q, x, field.reduce(np.uint8(PRIME + party) - x))
    term = _select(equal, w, np.uint8(PRIME) - w)
    above = np.full(count, party, np.uint8)  # P1's share holds the 1
    for i in range(width - 1, -1, -1):
        term[i] += above
        above += w[i]
        field.reduce(above)
    c = field.reduce(term)
    # r + 1 = 2^width (only if beta): x > r is impossible, so exactly one c_i must be 0.
    full = _wrapping(r, beta, width)
    if full.any():
        c[:, full] = party
        c[0, full] = 0
    return c


def _wrapping(r: Words, beta: Field, width: int) -> NDArray[np.bool_]:
    return np.asarray((r == np.uint64((1 << width) - 1)) & (beta == 1))


def _select(bits: Field, zero: Field, one: Field) -> Field:
    """``one`` where the bit is 1, else ``zero``; overwrites ``bits`` and ``one``."""
    np.negative(bits, out=bits)
    one ^= zero
    one &= bits
    one ^= zero
    return one


def _reorder(values: Field, rho: Field, width: int) -> None:
    """In place: what is at i goes to i xor rho, rho uniform below the width in every column."""
    for k in range(width.bit_length() - 1):
        swapped = np.negative((rho >> np.uint8(k)) & np.uint8(1))
        halves = values.reshape(-1, 2, 1 << k, values.shape[1])
        change = (halves[:, 0] ^ halves[:, 1]) & swapped
        halves[:, 0] ^= change
        halves[:, 1] ^= change


def found_zero(masked0: Field, masked1: Field) -> Field:
    """Step 8, at P2: beta xor [x > r], (n,), 0 or 1."""
    totals = field.add(masked0, masked1)
    return np.asarray(totals.min(axis=0) == 0, np.uint8)
