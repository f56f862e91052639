"""Evaluation of comparison keys in machine code; the same tree as ``primia.fss.evaluation``.

A chunk of comparisons goes down level by level, so that correction words are read in their order.
A node in scratch memory is its seed with the control bit t in bit 0 and the value so far in bit 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from primia.fss.geometry import KeyShape, packed_bytes
from primia.fss.kernel import Bits, KeyBlock, Numbers, Words
from primia.fss.lanes import I8, I32, I64, Emitter, Lanes
from primia.fss.native import CHUNK, Compiled, address, require

_ARGUMENTS = 10


class NativeEvaluator:
    """Implements ``primia.fss.kernel.Evaluator``. May be shared by threads."""

    def __init__(self, threads: int = 1, width: int | None = None) -> None:
        self._compiled = Compiled(emit, _ARGUMENTS, width or require(), threads)

    def evaluate(
        self, shape: KeyShape, party: int, x: Numbers, roots: Words, key: KeyBlock
    ) -> Bits:
        count, levels = len(x), shape.levels
        x, roots = np.ascontiguousarray(x), np.ascontiguousarray(roots)
        result = np.empty(count, dtype=np.uint8)
        self._compiled.run(
            count,
            address(x, np.uint32, count),
            address(roots, np.uint64, 2 * count),
            address(key.words, np.uint64, 2 * count * levels),
            address(key.leaves, np.uint64, 2 * count),
            address(key.bits, np.uint8, levels * packed_bytes(count)),
            address(result, np.uint8, count),
            count,
            levels,
            shape.leaf_bits,
            party,
        )
        return result


def emit(module: Any, name: str, width: int) -> None:
    e = Emitter(module, name, [I64] * (_ARGUMENTS + 2), width)
    b = e.builder
    start, stop, *addresses = e.arguments[:8]
    count, levels, leaf_bits, party = e.arguments[8:]
    x, roots, words, leaves, bits, result = (e.pointer(a) for a in addresses)
    nodes, paths = e.scratch(CHUNK), e.scratch(CHUNK)
    row_bytes = b.lshr(b.add(count, I64(7)), I64(3))
    domain_bits = b.add(levels, leaf_bits)
    with e.loop(start, stop, CHUNK) as first:
        size = e.least(I64(CHUNK), b.sub(stop, first))
        with e.loop(I64(0), size, width) as i:
            at = b.add(first, i)
            root = e.load(e.word_at(roots, at)) & _seed(e)
            e.store(root | e.splat(party) & e.word(1, 0), e.word_at(nodes, i))
            e.store(e.load_numbers(e.at(x, at, I32), I32), e.word_at(paths, i))
        with e.loop(I64(0), levels, 1) as level:
            row = e.word_at(words, b.mul(level, count))
            extra = e.at(bits, b.mul(level, row_bytes), I8)
            distance = e.splat(b.sub(b.sub(domain_bits, I64(1)), level))
            with e.loop(I64(0), size, width) as i:
                at = b.add(first, i)
                node, path = e.load(e.word_at(nodes, i)), e.load(e.word_at(paths, i))
                bit = (path >> distance) & e.word(1, 0)
                e.prefetch(e.word_at(row, b.add(at, count)))  # of the next level, or the leaf
                toggled = e.load_bits(extra, at).nonzero()
                child = _step(e, node, bit, e.load(e.word_at(row, at)), toggled)
                e.store(child, e.word_at(nodes, i))
        position = e.splat(b.sub(b.shl(I64(1), leaf_bits), I64(1)))
        with e.loop(I64(0), size, width) as i:
            at = b.add(first, i)
            node, path = e.load(e.word_at(nodes, i)), e.load(e.word_at(paths, i))
            share = _leaf(e, node, path & position, e.load(e.word_at(leaves, at)))
            e.store_bytes(share, e.at(result, at, I8))
    b.ret_void()


def _seed(e: Emitter) -> Lanes:
    return e.word(~3, ~0)


def _step(e: Emitter, node: Lanes, bit: Lanes, word: Lanes, toggled: Lanes) -> Lanes:
    """The child ``bit``; ``toggled``: where the right child's control bit is corrected too."""
    zero = e.word(0, 0)
    child = e.hash((node & _seed(e)) ^ bit)
    child ^= (e.low_in_both(node) & e.word(1, 1)).nonzero().choose(word, zero)
    child ^= toggled.choose(node & bit, zero)
    return child ^ node & e.word(2, 0)


def _leaf(e: Emitter, node: Lanes, position: Lanes, word: Lanes) -> Lanes:
    """The value, and on it the bit of the leaf block at ``position``, in bit 0 of each word."""
    leaf = e.hash((node & _seed(e)) ^ e.word(2, 0))
    leaf ^= (e.low_in_both(node) & e.word(1, 1)).nonzero().choose(word, e.word(0, 0))
    half = (position & e.word(64, 0)).nonzero().choose(e.swapped(leaf), leaf)
    bit = half >> (position & e.word(63, 0))
    return (bit ^ node >> e.word(1, 0)) & e.word(1, 0)
