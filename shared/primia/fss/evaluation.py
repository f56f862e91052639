"""Evaluation of comparison keys, level by level over a block: the NumPy reference.

Boyle, Gilboa, Ishai, Chandran, Gupta, Kumar, Rathee: Function Secret Sharing for Mixed-Mode and
Fixed-Point Secure Computation (EUROCRYPT 2021), figure 1, with a one-bit xor payload and early
termination. A node is a 128-bit word whose two lowest bits are its control bit t and value bit v.
Child j of the node s is h(s xor j), corrected where t is set; the leaf block is h(s xor 2).
One AES call a level, and one for the leaf.
"""

from __future__ import annotations

import numpy as np

from primia.fss.geometry import BLOCK, KeyShape
from primia.fss.kernel import Bits, KeyBlock, Lane, Numbers, Words
from primia.fss.prf import LEAF, ONE, SEED, FixedKeyHash


class NumpyEvaluator:
    """Implements ``primia.fss.kernel.Evaluator``."""

    def __init__(self) -> None:
        self._hash = FixedKeyHash()
        self._nodes = np.empty((2, BLOCK, 2), dtype=np.uint64)
        self._lanes = np.empty((5, BLOCK), dtype=np.uint64)

    def evaluate(
        self, shape: KeyShape, party: int, x: Numbers, roots: Words, key: KeyBlock
    ) -> Bits:
        count = len(x)
        node, child = self._nodes[:, :count]
        path, control, value, lane, mask = self._lanes[:, :count]
        np.bitwise_and(roots[:, 0], SEED, out=node[:, 0])
        np.copyto(node[:, 1], roots[:, 1])
        control[:] = party
        value[:] = 0
        for level in range(shape.levels):
            np.right_shift(x, shape.domain_bits - 1 - level, out=path, casting="unsafe")
            path &= ONE
            node[:, 0] ^= path
            self._hash(node, child)
            _correct(child, key.words[level], control, lane, mask)
            np.bitwise_and(control, path, out=control)
            control &= np.unpackbits(key.bits[level], count=count, bitorder="little")
            np.bitwise_and(child[:, 0], ONE, out=lane)
            control ^= lane
            np.right_shift(child[:, 0], ONE, out=lane)
            value ^= lane
            child[:, 0] &= SEED
            node, child = child, node
        node[:, 0] ^= LEAF
        self._hash(node, child)
        _correct(child, key.leaves, control, lane, mask)
        value ^= _leaf_bit(child, x, shape.leaf_bits)
        value &= ONE
        result: Bits = value.astype(np.uint8)
        return result


def _correct(child: Words, word: Words, control: Lane, lane: Lane, mask: Lane) -> None:
    """Xor the correction word where the control bit is set."""
    np.negative(control, out=mask)
    for half in (0, 1):
        np.bitwise_and(word[:, half], mask, out=lane)
        child[:, half] ^= lane


def _leaf_bit(leaf: Words, x: Numbers, leaf_bits: int) -> Lane:
    """The bit of each leaf block at the lowest bits of x; the bits above it are not cleared."""
    position = (x & np.uint32((1 << leaf_bits) - 1)).astype(np.uint64)
    chosen: Lane = np.where(position < 64, leaf[:, 0], leaf[:, 1])
    chosen >>= position & np.uint64(63)
    return chosen
