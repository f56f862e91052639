"""The nonlinear protocols as P0 and P1 run them, many values at once (SecureNN, algorithms 2 to 8).

Shares are additive: in Z_2^64 (``Words``), for the sign also in the odd ring Z_(2^64 - 1). What P2
deals comes to P0 from a seed; P1 is sent the other share. The zero shares that the paper adds to
results are left out: every message that leaves a party is masked afresh, with r, x, a or b.

Rounds (one-way delays on the critical path): share conversion 4, most significant bit 4, selection
1. What P2 deals for a gate does not depend on its values and is on its way before: as in the paper,
where it joins the round before, so that a DReLU takes 8 and a maximum of two 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from primia.mpc.securenn import field, odd, ring64
from primia.mpc.securenn.compare import Blind, draw_blinds, masked_differences
from primia.mpc.securenn.field import Field
from primia.mpc.securenn.layout import CONVERSION, SIGN, blocks, stream
from primia.mpc.securenn.ring64 import Words
from primia.mpc.securenn.wire import (
    ASSISTANT,
    Begin,
    Talk,
    receive_field,
    receive_odd,
    receive_words,
    send,
)
from primia.prg import Seed, Stream

_ONE, _TWO = np.uint64(1), np.uint64(2)


@dataclass(frozen=True, eq=False, repr=False)
class Party:
    """P0 or P1: ``index``; ``common``: the seed shared with the other one; ``dealt``: with P2."""

    index: int
    common: Seed
    dealt: Seed

    @property
    def other(self) -> int:
        return 1 - self.index

    def bits(self, source: Stream, shape: tuple[int, int]) -> Talk[Field]:
        """This party's share of something from P2, as ``odd`` and ``words``."""
        if self.index == 1:
            return (yield from receive_field(ASSISTANT, shape))
        return field.uniform(source, shape)

    def odd(self, source: Stream, count: int) -> Talk[Words]:
        if self.index == 1:
            return (yield from receive_odd(ASSISTANT, count))
        return odd.uniform(source, count)

    def words(self, source: Stream, shape: int | tuple[int, int]) -> Talk[Words]:
        if self.index == 1:
            return (yield from receive_words(ASSISTANT, shape))
        return ring64.uniform(source, shape)


@dataclass(frozen=True, eq=False, repr=False)
class Dealt:
    """Shares of what P2 deals before it knows anything: the bits of x, block by block, its lowest
    bit, the products a b of the triples for the sign (1, n) and the selection (payloads, n)."""

    bits: list[Field]
    lowest: Words
    sign: Words
    selection: Words


def take_deal(me: Party, gate: int, count: int, payloads: int) -> Talk[Dealt]:
    source = stream(me.dealt, gate, f"{SIGN} bits")
    bits = []
    for size in blocks(count):
        bits.append((yield from me.bits(source, (field.WIDTH, size))))
    lowest = yield from me.words(stream(me.dealt, gate, "lowest"), count)
    sign = yield from me.words(stream(me.dealt, gate, "sign ab"), (1, count))
    selection = yield from me.words(stream(me.dealt, gate, "selection ab"), (payloads, count))
    return Dealt(bits, lowest, sign, selection)


def select_positive(
    me: Party, gate: int, y: Words, payloads: Sequence[Words]
) -> Talk[Sequence[Words]]:
    """Shares of [y >= 0] times each payload; all of shape (n,), and |y| < 2^62.

    ReLU (algorithm 7) where y is the payload; ``gate`` numbers the gates of a session.
    """
    yield Begin(gate)
    positive, products = yield from derivative(me, gate, y, len(payloads))
    triple = Triple.of(me, gate, "selection", products)
    return list((yield from multiply(me, triple, np.stack(payloads), positive)))


def derivative(me: Party, gate: int, y: Words, payloads: int) -> Talk[tuple[Words, Words]]:
    """Algorithm 6, DReLU: shares of [y >= 0], (n,); and of the products that P2 has dealt for the
    selection of so many ``payloads``, (payloads, n)."""
    conversion = Conversion.begin(me, gate, y + y)
    yield from send(ASSISTANT, conversion.masked)
    blinds = _blinds(me, gate, CONVERSION, len(y))
    dealt = yield from take_deal(me, gate, len(y), payloads)
    yield from conversion.compare(me, gate, blinds)
    blinds = _blinds(me, gate, SIGN, len(y))
    doubled = yield from conversion.finish(me, gate)
    negative = yield from most_significant_bit(me, gate, doubled, dealt, blinds)
    return np.uint64(me.index) - negative, dealt.selection


@dataclass(frozen=True, eq=False, repr=False)
class Conversion:
    """Algorithm 4: shares of ``a`` != 2^64 - 1 in Z_2^64 to shares of it in Z_(2^64 - 1)."""

    a: Words
    masked: Words  # step 1, for P2: a_j + r_j
    wrapped: Words  # beta_j
    r: Words
    alpha: Words
    eta: Field  # eta''

    @classmethod
    def begin(cls, me: Party, gate: int, a: Words) -> Conversion:
        """Common randomness is r = r_0 + r_1, not 0: r - 1 must not wrap."""
        count = len(a)
        r0, r1 = (ring64.uniform(stream(me.common, gate, f"r{j}"), count) for j in (0, 1))
        r0 += (r0 + r1) == 0
        r = r0 + r1
        masked = a + (r1 if me.index else r0)
        eta = stream(me.common, gate, "eta").bits(count)
        wrapped, alpha = (masked < a).astype(np.uint64), (r < r0).astype(np.uint64)
        return cls(a, masked, wrapped, r, alpha, eta)

    def compare(self, me: Party, gate: int, blinds: Sequence[Blind]) -> Talk[None]:
        """Steps 3 and 4."""
        source = stream(me.dealt, gate, f"{CONVERSION} bits")
        yield from compare(me, source, self.r - _ONE, self.eta, blinds)

    def finish(self, me: Party, gate: int) -> Talk[Words]:
        """Steps 5 to 8. With x = a + r mod 2^64, delta what the two masked shares carried, and
        eta = [x >= r]: the shares carried theta = beta_0 + beta_1 - alpha - 1 + delta + eta."""
        delta = yield from me.odd(stream(me.dealt, gate, "delta"), len(self.a))
        eta = yield from me.odd(stream(me.dealt, gate, "eta"), len(self.a))
        flipped = odd.subtract(np.full_like(eta, 1 - me.index), eta)
        eta = np.where(self.eta, flipped, eta)
        y = odd.subtract(odd.subtract(odd.reduce(self.a), delta), eta)
        if me.index == 0:
            y = odd.add(y, self.alpha + _ONE)
        return odd.subtract(y, self.wrapped)


def _blinds(me: Party, gate: int, name: str, count: int) -> list[Blind]:
    return draw_blinds(me.common, f"securenn/gate {gate}/{name}", blocks(count))


def compare(
    me: Party, source: Stream | Sequence[Field], r: Words, beta: Field, blinds: Sequence[Blind]
) -> Talk[None]:
    """Algorithm 3, block by block: P2 learns beta xor [x > r]. ``source``: where this party's
    shares of the bits of x come from, or the shares."""
    start = 0
    for number, blind in enumerate(blinds):
        size = len(blind.orders)
        part = slice(start, start + size)
        if isinstance(source, Stream):
            x = yield from me.bits(source, (field.WIDTH, size))
        else:
            x = source[number]
        yield from send(ASSISTANT, masked_differences(me.index, x, r[part], beta[part], blind))
        start += size


def most_significant_bit(
    me: Party, gate: int, a: Words, dealt: Dealt, blinds: Sequence[Blind]
) -> Talk[Words]:
    """Algorithm 5: shares in Z_2^64 of the sign of ``a``, shared in Z_(2^64 - 1).

    MSB(a) = LSB(2a) in the odd ring; with r = 2a + x opened, LSB(2a) = r[0] xor x[0] xor [x > r].
    """
    x = odd.uniform(stream(me.dealt, gate, "x"), len(a))
    mine = odd.add(odd.add(a, a), x)
    yield from send(me.other, mine)
    r = odd.add(mine, (yield from receive_odd(me.other, len(a))))
    beta = stream(me.common, gate, "beta").bits(len(a))
    yield from compare(me, dealt.bits, r, beta, blinds)
    larger = yield from me.words(stream(me.dealt, gate, "beta"), len(a))
    one = np.uint64(me.index)
    larger = np.where(beta, one - larger, larger)  # gamma: [x > r]
    parity = np.where(r & _ONE, one - dealt.lowest, dealt.lowest)  # delta: r[0] xor x[0]
    triple = Triple.of(me, gate, "sign", dealt.sign)
    (both,) = yield from multiply(me, triple, larger[None], parity)
    return np.asarray(larger + parity - _TWO * both)


@dataclass(frozen=True, eq=False, repr=False)
class Triple:
    """Shares of uniform a, (payloads, n), and b, (n,), and of a b (Beaver, CRYPTO 1991)."""

    a: Words
    b: Words
    ab: Words

    @classmethod
    def of(cls, me: Party, gate: int, name: str, ab: Words) -> Triple:
        a = ring64.uniform(stream(me.dealt, gate, f"{name} a"), ab.shape)
        b = ring64.uniform(stream(me.dealt, gate, f"{name} b"), ab.shape[1])
        return cls(a, b, ab)


def multiply(me: Party, triple: Triple, x: Words, y: Words) -> Talk[Words]:
    """Shares of x y for each payload: x (payloads, n), y (n,). One round (algorithm 2)."""
    mine = x - triple.a, y - triple.b
    yield from send(me.other, *mine)
    e = mine[0] + (yield from receive_words(me.other, x.shape))
    f = mine[1] + (yield from receive_words(me.other, len(y)))
    result = triple.ab + e * triple.b + f * triple.a
    if me.index:
        result += e * f
    return np.asarray(result)
