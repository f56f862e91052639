"""The comparison tree in Triton: a lane a comparison, its node in four 32-bit registers.

The same tree as ``primia.fss.evaluation`` and ``primia.fss.generation``. Tables and round keys lie
in memory that every lane reads. ``SIZE``: comparisons of a program instance.
"""

# Triton reads the annotations of its functions itself, and takes none but its own.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

# Of the arguments, those that Triton would take for constants of the code where they are 1.
_NUMBERS = ("count", "levels", "leaf_bits", "party")


@triton.jit
def _byte(word, place: tl.constexpr):
    return ((word >> (8 * place)) & 255).to(tl.int32)


@triton.jit
def _mixed(table, word, place: tl.constexpr):
    """What the byte at ``place`` of a column adds to the round's result."""
    found = tl.load(table + _byte(word, place))
    if place > 0:
        found = (found << (8 * place)) | (found >> (32 - 8 * place))
    return found


@triton.jit
def _column(table, keys, a, b, c, d, at):
    """One column of a round; ShiftRows takes each byte from the next column."""
    rows = _mixed(table, a, 0) ^ _mixed(table, b, 1) ^ _mixed(table, c, 2) ^ _mixed(table, d, 3)
    return rows ^ tl.load(keys + at)


@triton.jit
def _plain(table, word, place: tl.constexpr):
    """S of a byte, at its place: the last round does not mix."""
    return ((tl.load(table + _byte(word, place)) >> 8) & 255) << (8 * place)


@triton.jit
def _last(table, keys, a, b, c, d, at):
    rows = _plain(table, a, 0) | _plain(table, b, 1) | _plain(table, c, 2) | _plain(table, d, 3)
    return rows ^ tl.load(keys + at)


@triton.jit
def _hash(table, keys, a, b, c, d):
    """AES_K(x) xor x."""
    p, q, r, s = a, b, c, d
    p ^= tl.load(keys)
    q ^= tl.load(keys + 1)
    r ^= tl.load(keys + 2)
    s ^= tl.load(keys + 3)
    for number in range(1, 10):
        at = 4 * number
        e = _column(table, keys, p, q, r, s, at)
        f = _column(table, keys, q, r, s, p, at + 1)
        g = _column(table, keys, r, s, p, q, at + 2)
        h = _column(table, keys, s, p, q, r, at + 3)
        p, q, r, s = e, f, g, h
    e = _last(table, keys, p, q, r, s, 40)
    f = _last(table, keys, q, r, s, p, 41)
    g = _last(table, keys, r, s, p, q, 42)
    h = _last(table, keys, s, p, q, r, 43)
    return e ^ a, f ^ b, g ^ c, h ^ d


@triton.jit
def _load(words, at, here):
    """The four columns of the 128-bit word ``at``."""
    a = tl.load(words + 4 * at, mask=here, other=0)
    b = tl.load(words + 4 * at + 1, mask=here, other=0)
    c = tl.load(words + 4 * at + 2, mask=here, other=0)
    d = tl.load(words + 4 * at + 3, mask=here, other=0)
    return a, b, c, d


@triton.jit
def _store(words, at, here, a, b, c, d):
    tl.store(words + 4 * at, a, mask=here)
    tl.store(words + 4 * at + 1, b, mask=here)
    tl.store(words + 4 * at + 2, c, mask=here)
    tl.store(words + 4 * at + 3, d, mask=here)


@triton.jit
def _where(bit, word):
    """The word where the bit is set, else 0."""
    return tl.where(bit != 0, word, 0).to(tl.uint32)


@triton.jit(do_not_specialize=_NUMBERS)
def evaluate(
    x,
    roots,
    words,
    leaves,
    bits,
    table,
    keys,
    result,
    count,
    levels,
    leaf_bits,
    party,
    SIZE: tl.constexpr,
):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    here = i < count
    row_bytes = (count + 7) // 8
    number = tl.load(x + i, mask=here, other=0)
    a, b, c, d = _load(roots, i, here)
    a &= 0xFFFFFFFC
    control = (number & 0) + party.to(tl.uint32)
    value = number & 0
    for level in range(levels):
        bit = (number >> (levels + leaf_bits - 1 - level).to(tl.uint32)) & 1
        a, b, c, d = _hash(table, keys, a ^ bit, b, c, d)
        e, f, g, h = _load(words, level * count + i, here)
        a ^= _where(control, e)
        b ^= _where(control, f)
        c ^= _where(control, g)
        d ^= _where(control, h)
        packed = tl.load(bits + level * row_bytes + i // 8, mask=here, other=0)
        extra = (packed.to(tl.uint32) >> (i % 8).to(tl.uint32)) & 1
        control = (a & 1) ^ (control & bit & extra)
        value ^= (a >> 1) & 1
        a &= 0xFFFFFFFC
    a, b, c, d = _hash(table, keys, a ^ 2, b, c, d)
    e, f, g, h = _load(leaves, i, here)
    a ^= _where(control, e)
    b ^= _where(control, f)
    c ^= _where(control, g)
    d ^= _where(control, h)
    position = number & ((1 << leaf_bits) - 1).to(tl.uint32)
    low = tl.where(position < 32, a, b)
    high = tl.where(position < 96, c, d)
    word = tl.where(position < 64, low, high)
    value ^= (word >> (position & 31)) & 1
    tl.store(result + i, value.to(tl.uint8), mask=here)


@triton.jit
def _below(position, column: tl.constexpr):
    """Ones at the bits of a column of the leaf block below ``position``."""
    reach = position.to(tl.int32) - 32 * column
    some = (((reach & 0) + 1).to(tl.uint32) << (reach & 31).to(tl.uint32)) - 1
    filled = tl.where(reach >= 32, 0xFFFFFFFF, some)
    return tl.where(reach <= 0, 0, filled).to(tl.uint32)


@triton.jit(do_not_specialize=_NUMBERS)
def generate(
    alpha,
    constant,
    roots0,
    roots1,
    words,
    leaves,
    extras,
    table,
    keys,
    count,
    levels,
    leaf_bits,
    SIZE: tl.constexpr,
):
    """``extras``: a byte a level and comparison; the caller packs them to bits."""
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    here = i < count
    number = tl.load(alpha + i, mask=here, other=0)
    value = tl.load(constant + i, mask=here, other=0).to(tl.uint32)
    a0, b0, c0, d0 = _load(roots0, i, here)
    a1, b1, c1, d1 = _load(roots1, i, here)
    a0 &= 0xFFFFFFFC
    a1 &= 0xFFFFFFFC
    t0 = number & 0
    t1 = (number & 0) + 1
    for level in range(levels):
        bit = (number >> (levels + leaf_bits - 1 - level).to(tl.uint32)) & 1
        la0, lb0, lc0, ld0 = _hash(table, keys, a0, b0, c0, d0)
        ra0, rb0, rc0, rd0 = _hash(table, keys, a0 ^ 1, b0, c0, d0)
        la1, lb1, lc1, ld1 = _hash(table, keys, a1, b1, c1, d1)
        ra1, rb1, rc1, rd1 = _hash(table, keys, a1 ^ 1, b1, c1, d1)
        left, right = la0 ^ la1, ra0 ^ ra1
        extra = (left ^ right ^ 1) & 1
        control = (left ^ bit ^ 1) & 1
        lose = tl.where(bit != 0, left, right)
        e = (lose & 0xFFFFFFFC) | control | (((lose >> 1) ^ value ^ bit) & 1) << 1
        f = tl.where(bit != 0, lb0 ^ lb1, rb0 ^ rb1)
        g = tl.where(bit != 0, lc0 ^ lc1, rc0 ^ rc1)
        h = tl.where(bit != 0, ld0 ^ ld1, rd0 ^ rd1)
        _store(words, level * count + i, here, e, f, g, h)
        tl.store(extras + level * count + i, extra.to(tl.uint8), mask=here)
        a0 = tl.where(bit != 0, ra0, la0) ^ _where(t0, e)
        b0 = tl.where(bit != 0, rb0, lb0) ^ _where(t0, f)
        c0 = tl.where(bit != 0, rc0, lc0) ^ _where(t0, g)
        d0 = tl.where(bit != 0, rd0, ld0) ^ _where(t0, h)
        a1 = tl.where(bit != 0, ra1, la1) ^ _where(t1, e)
        b1 = tl.where(bit != 0, rb1, lb1) ^ _where(t1, f)
        c1 = tl.where(bit != 0, rc1, lc1) ^ _where(t1, g)
        d1 = tl.where(bit != 0, rd1, ld1) ^ _where(t1, h)
        t0 = (a0 & 1) ^ (t0 & bit & extra)
        t1 = (a1 & 1) ^ (t1 & bit & extra)
        value ^= ((a0 ^ a1) >> 1) & 1
        a0 &= 0xFFFFFFFC
        a1 &= 0xFFFFFFFC
    la0, lb0, lc0, ld0 = _hash(table, keys, a0 ^ 2, b0, c0, d0)
    la1, lb1, lc1, ld1 = _hash(table, keys, a1 ^ 2, b1, c1, d1)
    position = number & ((1 << leaf_bits) - 1).to(tl.uint32)
    turned = _where(value, (number & 0) + 0xFFFFFFFF)
    e = la0 ^ la1 ^ _below(position, 0) ^ turned
    f = lb0 ^ lb1 ^ _below(position, 1) ^ turned
    g = lc0 ^ lc1 ^ _below(position, 2) ^ turned
    h = ld0 ^ ld1 ^ _below(position, 3) ^ turned
    _store(leaves, i, here, e, f, g, h)
