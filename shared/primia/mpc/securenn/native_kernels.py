"""LLVM IR for ``native``: functions of a slice of columns (start, stop) and 64-bit arguments."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from primia.fss.lanes import I8, I64, Emitter

I16 = ir.IntType(16)
PRIME = 67
MASKING_ARGUMENTS = 10
# Rows of a column: the bits of a word, at most.
_ROWS = 64


class Vectors:
    """Arithmetic on vectors of ``kind``, ``width`` of them."""

    def __init__(self, emitter: Emitter, kind: Any, width: int) -> None:
        self.e = emitter
        self.b = emitter.builder
        self.kind = kind
        self.type = ir.VectorType(kind, width)
        self.width = width

    def constant(self, value: int) -> Any:
        return ir.Constant(self.type, [value] * self.width)

    def splat(self, scalar: Any) -> Any:
        """The low bits of a 64-bit number in every place."""
        narrow = self.b.trunc(scalar, self.kind)
        first = self.b.insert_element(ir.Constant(self.type, None), narrow, ir.IntType(32)(0))
        order = ir.Constant(ir.VectorType(ir.IntType(32), self.width), [0] * self.width)
        return self.b.shuffle_vector(first, first, order)

    def load(self, base: Any, index: Any) -> Any:
        return self.b.load(self.e.at(base, index, self.kind), typ=self.type, align=1)

    def store(self, value: Any, base: Any, index: Any) -> None:
        self.b.store(value, self.e.at(base, index, self.kind), align=1)

    def below_prime(self, value: Any) -> Any:
        """value mod 67 of bytes below 2 * 67: the lesser of it and it less 67, which wraps."""
        less = self.b.sub(value, self.constant(PRIME))
        return self.b.select(self.b.icmp_unsigned("<", value, less), value, less)

    def product(self, left: Any, right: Any) -> Any:
        """Of bytes below 67, mod 67."""
        wide = ir.VectorType(I16, self.width)
        product = self.b.mul(self.b.zext(left, wide), self.b.zext(right, wide))
        prime = ir.Constant(wide, [PRIME] * self.width)
        return self.b.trunc(self.b.urem(product, prime), self.type)


def emit_masking(module: Any, name: str, width: int) -> None:
    """Arguments: x, q, factors, zeros, beta, orders, out, count, rows, party; see ``compare``."""
    e = Emitter(module, name, [I64] * (MASKING_ARGUMENTS + 2), 1)
    b, v = e.builder, Vectors(e, I8, width)
    scratch = e.scratch(-(-_ROWS * width // 16))
    start, stop, *addresses = e.arguments[:9]
    x, q, factors, zeros, beta, orders, out = (e.pointer(given) for given in addresses)
    count, rows, party = e.arguments[9:]
    parties = v.splat(party)
    second = b.icmp_unsigned("!=", parties, v.constant(0))
    flipped = b.add(parties, v.constant(PRIME))
    state = e.scratch(-(-width // 16))  # the sum of w above the row
    with e.loop(start, stop, width) as column:
        betas = v.load(beta, column)
        v.store(parties, state, I64(0))
        with e.loop(I64(0), rows, 1) as done:
            row = b.sub(b.sub(rows, I64(1)), done)
            at = b.add(b.mul(row, count), column)
            bits, share = v.load(q, at), v.load(x, at)
            flip = v.below_prime(b.sub(flipped, share))
            w = b.select(b.icmp_unsigned("!=", bits, v.constant(0)), flip, share)
            negative = b.icmp_unsigned("==", bits, betas)
            term = b.select(negative, b.sub(v.constant(PRIME), w), w)
            above = v.load(state, I64(0))
            c = v.below_prime(b.add(term, above))
            v.store(v.below_prime(b.add(above, w)), state, I64(0))
            zero = v.load(zeros, at)
            zero = b.select(second, b.sub(v.constant(PRIME), zero), zero)
            masked = v.below_prime(b.add(v.product(c, v.load(factors, at)), zero))
            v.store(masked, scratch, b.mul(row, I64(width)))
        _reorder(e, v, scratch, v.load(orders, column), rows)
        with e.loop(I64(0), rows, 1) as row:
            value = v.load(scratch, b.mul(row, I64(width)))
            v.store(value, out, b.add(b.mul(row, count), column))
    b.ret_void()


def _reorder(e: Emitter, v: Vectors, scratch: Any, orders: Any, rows: Any) -> None:
    """What is at row i goes to i xor the column's order: rows k apart change places, bit by bit."""
    b = e.builder
    for k in range(_ROWS.bit_length() - 1):
        bit = b.and_(orders, v.constant(1 << k))
        swapped = b.icmp_unsigned("!=", bit, v.constant(0))
        # With fewer rows there are no pairs so far apart.
        pairs = b.select(b.icmp_signed("<", I64(1 << k), rows), b.lshr(rows, I64(1)), I64(0))
        with e.loop(I64(0), pairs, 1) as pair:
            low = b.and_(pair, I64((1 << k) - 1))
            first = b.or_(b.shl(b.lshr(pair, I64(k)), I64(k + 1)), low)
            places = [b.mul(b.add(first, I64(add)), I64(v.width)) for add in (0, 1 << k)]
            one, other = (v.load(scratch, place) for place in places)
            v.store(b.select(swapped, other, one), scratch, places[0])
            v.store(b.select(swapped, one, other), scratch, places[1])


def emit_digits_66(module: Any, name: str, width: int) -> None:
    _emit_digits(module, name, width, 66)


def emit_digits_67(module: Any, name: str, width: int) -> None:
    _emit_digits(module, name, width, 67)


def _emit_digits(module: Any, name: str, width: int, base: int) -> None:
    """Argument: words, which become (low digit) + 256 (the next one)."""
    e = Emitter(module, name, [I64] * 3, 1)
    b, v = e.builder, Vectors(e, I16, width)
    start, stop, words = e.arguments
    pointer, bases = e.pointer(words), v.constant(base)
    with e.loop(start, stop, width) as at:
        word = v.load(pointer, at)
        quotient = b.udiv(word, bases)
        low, high = b.urem(word, bases), b.urem(quotient, bases)
        v.store(b.or_(low, b.shl(high, v.constant(8))), pointer, at)
    b.ret_void()
