"""What a gate selects, from opened and hidden bits: the shares that are dealt, and their use.

A gate selects b y, or of three ways s p u + (1 - s) q v, where the bits p = [u >= 0], q = [v >= 0],
s = [u - v >= 0] come from comparisons (in ``b y``: p = b, u = y). Of four ways it selects
s x p u + (1 - s) y q v + (1 - x) (1 - y) t w, with t = [w >= 0], x = [u - w >= 0] and
y = [v - w >= 0], which must be exact: of bits that contradict each other none, or the sum of two,
might be selected. Of each bit the parties open
i = b xor c, where c is hidden from both: b = i + (1 - 2i) c. Opened values are y + r. So a product
of bits and y is linear in

    f, f r    for each *factor* f: products of the c of its bits (the factor 1 is known)

of which both parties hold additive shares: Beaver (CRYPTO 1991), with bits opened as in Boyle,
Gilboa, Ishai: Secure Computation with Preprocessing via Function Secret Sharing (TCC 2019).
One party's share comes from its seed, the other's is dealt, of every second item to P1, so that
the halves are of about the same size (``dealt``); of r without widening both come from seeds.

Widening: the share of -r over Z_2^32 is g mu - rho with rho = r, mu = 2^n msb(r) and
g = 1 - msb(y + r): -r, and 2^n where y + r wrapped around. So there are f mu as well. That holds
for no negative y; a coarse gate selects negative ones down to -``centre``, so it widens
y + centre, and takes centre away again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from primia.fss.kernel import Bits
from primia.mpc.gate_shape import Gate
from primia.mpc.masks import ones, sign
from primia.ring import Ring

_ONE = np.uint32(1)

# By the ways of a gate: its bits in the order of their comparisons, and for each opened value of a
# payload those that decide on it, "-" before one that must be 0.
BITS = {2: "p", 3: "pqs", 4: "pqtsxy"}
_DECIDING = {
    2: (("p",),),
    3: (("p", "s"), ("q", "-s")),
    4: (("p", "s", "x"), ("q", "-s", "y"), ("t", "-x", "-y")),
}


def _products(bits: Sequence[str]) -> tuple[str, ...]:
    """Of all choices among the bits, the first bit in every second one."""
    names = [bit[-1] for bit in bits]
    chosen = itertools.product((False, True), repeat=len(names))
    return tuple("".join(itertools.compress(names, reversed(each))) for each in chosen)


# For each opened value of a payload the factors that it meets.
FACTORS = {ways: tuple(map(_products, lanes)) for ways, lanes in _DECIDING.items()}


class Item(NamedTuple):
    """Something shared: a factor, or with ``times`` "r" or "mu" its product with those of a lane,
    which is an opened value's number."""

    factor: str
    times: str = ""
    lane: int = 0

    @property
    def name(self) -> str:
        """Of P1's stream, together with the lane."""
        return self.factor + self.times


Shares = Callable[[Item], Ring]  # a party's share of an item, (count,)


def factors(gate: Gate) -> tuple[str, ...]:
    """All but 1, each once."""
    return tuple(dict.fromkeys(f for lane in FACTORS[gate.ways] for f in lane if f))


def dealt(gate: Gate, party: int) -> list[Item]:
    """What is dealt to the party, in the order of its use. P1's share of r itself is never: it is
    in the offline message."""
    halves: tuple[list[Item], list[Item]] = ([], [])
    turn = 1
    for item in corrections(gate):
        taker = 0 if item.name == "r" else turn
        halves[taker].append(item)
        if taker == turn:
            turn = 1 - turn
    return halves[party]


def corrections(gate: Gate) -> list[Item]:
    """What is dealt to one party or the other, in the order of its use."""
    found = [Item(factor) for factor in factors(gate)]
    for lane in range(gate.lanes):
        for factor in FACTORS[gate.ways][lane % (gate.ways - 1)]:
            if factor or gate.widen:
                found.append(Item(factor, "r", lane))
            if gate.widen:
                found.append(Item(factor, "mu", lane))
    return found


def compared_lanes(gate: Gate, lanes: Sequence[Ring]) -> tuple[Ring, ...]:
    """What the comparisons look at: the values and their differences; opened, or of the masks."""
    values = lanes[: gate.ways - 1]
    return (*values, *(u - v for u, v in itertools.combinations(values, 2)))


def selected(gate: Gate, party: int, opened: Ring, bits: Bits, shares: Shares) -> list[Ring]:
    """This party's share of what is selected, (count,) a payload.

    ``opened``: y + r, (lanes, count), below 2^width; ``bits``: i, (comparisons, count).
    ``shares``: this party's, asked for in the order of ``corrections``.
    """
    numbers = bits.astype(np.uint32)
    known = {factor: shares(Item(factor)) for factor in factors(gate)}
    chosen = []
    for lane, value in enumerate(opened):
        at = lane % (gate.ways - 1)
        wrapped = None
        if gate.widen:
            moved = _moved(gate, value)
            wrapped = _ONE - sign(gate, moved)
            value = moved - np.uint32(gate.centre) if gate.centre else value
        products = []
        for factor in FACTORS[gate.ways][at]:
            masked = shares(Item(factor, "r", lane))
            if factor:
                product = value * known[factor]
                product -= masked
            else:  # P0's share of 1 is 1, P1's 0
                product = value - masked if party == 0 else np.negative(masked)
            if wrapped is not None:
                product += wrapped * shares(Item(factor, "mu", lane))
            products.append(product)
        for bit in _deciding(gate, at, numbers):
            products = [
                _decide(bit, one, hidden)
                for one, hidden in zip(products[::2], products[1::2], strict=True)
            ]
        chosen += products
    each = gate.ways - 1
    return [_sum(chosen[first : first + each]) for first in range(0, len(chosen), each)]


def _sum(values: list[Ring]) -> Ring:
    total, *others = values
    for value in others:
        total += value
    return total


def _moved(gate: Gate, value: Ring) -> Ring:
    """y + centre, opened."""
    return (value + np.uint32(gate.centre)) & ones(gate.width) if gate.centre else value


def _deciding(gate: Gate, lane: int, numbers: Ring) -> tuple[Ring, ...]:
    """The opened bits on which a value depends; for 1 - s it is 1 - i, as 1 - s = (1 - i) xor c."""
    at = dict(zip(BITS[gate.ways], numbers, strict=True))
    names = _DECIDING[gate.ways][lane]
    return tuple(_ONE - at[name[1]] if name[0] == "-" else at[name] for name in names)


def _decide(bit: Ring, one: Ring, hidden: Ring) -> Ring:
    """b x = i x + (1 - 2i) c x, from ``one``, the share of x, and ``hidden``, that of c x."""
    one -= hidden
    one -= hidden
    one *= bit
    one += hidden
    return one
