"""Generation of comparison keys in machine code; the same keys as ``primia.fss.generation``.

A chunk of comparisons goes down level by level. The two parties' nodes on alpha's path lie in
scratch memory with the control bit t in bit 0; bit 1 of P0's is the difference of the two values.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from primia.fss.geometry import KeyShape, packed_bytes
from primia.fss.kernel import Bits, KeyBlock, Numbers, Words
from primia.fss.lanes import I8, I32, I64, Emitter, Lanes
from primia.fss.native import CHUNK, Compiled, address, require

_ARGUMENTS = 10
Pair = tuple[Lanes, Lanes]  # of P0 and of P1


class NativeGenerator:
    """Implements ``primia.fss.kernel.Generator``. May be shared by threads."""

    def __init__(self, threads: int = 1, width: int | None = None) -> None:
        self._compiled = Compiled(emit, _ARGUMENTS, width or require(), threads)

    def generate(
        self,
        shape: KeyShape,
        alpha: Numbers,
        constant: Bits,
        roots: tuple[Words, Words],
        out: KeyBlock,
    ) -> None:
        count, levels = len(alpha), shape.levels
        alpha, constant = np.ascontiguousarray(alpha), np.ascontiguousarray(constant)
        first, second = (np.ascontiguousarray(root) for root in roots)
        self._compiled.run(
            count,
            address(alpha, np.uint32, count),
            address(constant, np.uint8, count),
            address(first, np.uint64, 2 * count),
            address(second, np.uint64, 2 * count),
            address(out.words, np.uint64, 2 * count * levels),
            address(out.leaves, np.uint64, 2 * count),
            address(out.bits, np.uint8, levels * packed_bytes(count)),
            count,
            levels,
            shape.leaf_bits,
        )


def emit(module: Any, name: str, width: int) -> None:
    e = Emitter(module, name, [I64] * (_ARGUMENTS + 2), width)
    b = e.builder
    start, stop, *addresses = e.arguments[:9]
    count, levels, leaf_bits = e.arguments[9:]
    alpha, constant, root0, root1, words, leaves, bits = (e.pointer(a) for a in addresses)
    scratch = e.scratch(CHUNK), e.scratch(CHUNK)
    paths = e.scratch(CHUNK)
    row_bytes = b.lshr(b.add(count, I64(7)), I64(3))
    domain_bits = b.add(levels, leaf_bits)
    with e.loop(start, stop, CHUNK) as first:
        size = e.least(I64(CHUNK), b.sub(stop, first))
        with e.loop(I64(0), size, width) as i:
            at = b.add(first, i)
            value = e.load_numbers(e.at(constant, at, I8), I8) & e.word(1, 0)
            seed0 = e.load(e.word_at(root0, at)) & _seed(e)
            seed1 = e.load(e.word_at(root1, at)) & _seed(e)
            _store(e, scratch, i, (seed0 | value << e.word(1, 0), seed1 | e.word(1, 0)))
            e.store(e.load_numbers(e.at(alpha, at, I32), I32), e.word_at(paths, i))
        with e.loop(I64(0), levels, 1) as level:
            row = e.word_at(words, b.mul(level, count))
            extra_row = e.at(bits, b.mul(level, row_bytes), I8)
            distance = e.splat(b.sub(b.sub(domain_bits, I64(1)), level))
            with e.loop(I64(0), size, width) as i:
                at = b.add(first, i)
                bit = (e.load(e.word_at(paths, i)) >> distance) & e.word(1, 0)
                after, word, extra = _step(e, _load(e, scratch, i), bit)
                e.store(word, e.word_at(row, at))
                e.store_bits(extra.nonzero(), extra_row, at)
                _store(e, scratch, i, after)
        position = e.splat(b.sub(b.shl(I64(1), leaf_bits), I64(1)))
        with e.loop(I64(0), size, width) as i:
            low = e.load(e.word_at(paths, i)) & position
            leaf = _leaf(e, _load(e, scratch, i), low)
            e.store(leaf, e.word_at(leaves, b.add(first, i)))
    b.ret_void()


def _load(e: Emitter, scratch: tuple[Any, Any], i: Any) -> Pair:
    return e.load(e.word_at(scratch[0], i)), e.load(e.word_at(scratch[1], i))


def _store(e: Emitter, scratch: tuple[Any, Any], i: Any, nodes: Pair) -> None:
    for memory, node in zip(scratch, nodes, strict=True):
        e.store(node, e.word_at(memory, i))


def _seed(e: Emitter) -> Lanes:
    return e.word(~3, ~0)


def _step(e: Emitter, nodes: Pair, bit: Lanes) -> tuple[Pair, Lanes, Lanes]:
    """Both parties' next nodes on alpha's path, the level's word, and the bit that corrects the
    right child's control bit in addition."""
    one, two, zero = e.word(1, 0), e.word(2, 0), e.word(0, 0)
    seeds = [node & _seed(e) for node in nodes]
    lefts, rights = [e.hash(s) for s in seeds], [e.hash(s ^ one) for s in seeds]
    left, right = lefts[0] ^ lefts[1], rights[0] ^ rights[1]
    goes_right = e.low_in_both(bit).nonzero()
    extra = (left ^ right ^ one) & one
    control = (left ^ bit ^ one) & one
    lose = goes_right.choose(left, right)
    lose_value = (lose ^ nodes[0] ^ bit << one) & two
    word = lose & _seed(e) | control | lose_value
    kept = []
    for node, l_child, r_child in zip(nodes, lefts, rights, strict=True):
        child = goes_right.choose(r_child, l_child)
        child ^= (e.low_in_both(node) & e.word(1, 1)).nonzero().choose(word, zero)
        kept.append(child ^ node & bit & extra)
    value = (nodes[0] ^ kept[0] ^ kept[1]) & two
    keep = e.word(~2, ~0)
    return (kept[0] & keep | value, kept[1] & keep), word, extra


def _leaf(e: Emitter, nodes: Pair, position: Lanes) -> Lanes:
    """The correction of the leaf blocks: ones below alpha's position, all turned by the value."""
    leaf = e.word(0, 0)
    for node in nodes:
        leaf ^= e.hash((node & _seed(e)) ^ e.word(2, 0))
    ones, zero = e.word(~0, ~0), e.word(0, 0)
    # Of each half, how many of its bits lie below the position: less than 1, 1 to 63, or all.
    reach = e.low_in_both(position) - e.word(0, 64)
    some = (e.word(1, 1) << (reach & e.word(63, 63))) - e.word(1, 1)
    below = reach.below(e.word(64, 64)).choose(some, ones)
    below = reach.below(e.word(0, 0)).choose(zero, below)
    turned = (e.low_in_both(nodes[0]) & e.word(2, 2)).nonzero()
    return leaf ^ below ^ turned.choose(ones, zero)
