"""Generation of comparison keys, level by level over a block: the NumPy reference.

Boyle et al. (EUROCRYPT 2021), figure 1, as in ``primia.fss.evaluation``. At each level one child is
off alpha's path (lose): there the parties' seeds and control bits are made equal, so that nothing
changes any more below it, and their value bits made to xor to the answer for that subtree. The
constant enters as the initial difference of the values. Two AES calls a level and party.
"""

from __future__ import annotations

import numpy as np

from primia.fss.geometry import BLOCK, KeyShape
from primia.fss.kernel import Bits, KeyBlock, Lane, Numbers, Words
from primia.fss.prf import LEAF, ONE, SEED, FixedKeyHash

_ALL = ~np.uint64(0)


class NumpyGenerator:
    """Implements ``primia.fss.kernel.Generator``."""

    def __init__(self) -> None:
        self._hash = FixedKeyHash()
        self._nodes = np.empty((2, BLOCK, 2), dtype=np.uint64)
        self._children = np.empty((2, 2, BLOCK, 2), dtype=np.uint64)  # party, child

    def generate(
        self,
        shape: KeyShape,
        alpha: Numbers,
        constant: Bits,
        roots: tuple[Words, Words],
        out: KeyBlock,
    ) -> None:
        count = len(alpha)
        nodes = self._nodes[:, :count]
        for party, root in enumerate(roots):
            np.copyto(nodes[party], root)
            nodes[party, :, 0] &= SEED
        controls = np.zeros((2, count), dtype=np.uint64)
        controls[1] = 1
        value = constant.astype(np.uint64)
        for level in range(shape.levels):
            bit = (alpha >> np.uint32(shape.domain_bits - 1 - level)).astype(np.uint64) & ONE
            self._expand(nodes)
            word, extra = self._correction(bit, value, count)
            out.words[level] = word
            out.bits[level] = np.packbits(extra.astype(np.uint8), bitorder="little")
            value = self._keep(nodes, controls, bit, word, extra, value)
        self._leaves(shape, alpha, nodes, value, out)

    def _expand(self, nodes: Words) -> None:
        count = nodes.shape[1]
        for party in (0, 1):
            self._hash(nodes[party], self._children[party, 0, :count])
            nodes[party, :, 0] ^= ONE
            self._hash(nodes[party], self._children[party, 1, :count])

    def _correction(self, bit: Lane, value: Lane, count: int) -> tuple[Words, Lane]:
        """The level's words (their low bits correct child 0's control bit and either's value) and
        the bits by which child 1's control bit is corrected in addition."""
        children = self._children[:, :, :count]
        left = children[0, 0] ^ children[1, 0]
        right = children[0, 1] ^ children[1, 1]
        extra = (left[:, 0] ^ right[:, 0] ^ ONE) & ONE
        control = (left[:, 0] ^ bit ^ ONE) & ONE
        word = right
        _blend(word, left, bit)  # the lose child is 0 where alpha goes right
        lose_value = word[:, 0] >> ONE
        lose_value ^= value ^ bit
        word[:, 0] &= SEED
        word[:, 0] |= control | ((lose_value & ONE) << ONE)
        return word, extra

    def _keep(
        self, nodes: Words, controls: Words, bit: Lane, word: Words, extra: Lane, value: Lane
    ) -> Lane:
        """Both parties' steps along alpha's path, in place; the new difference of values."""
        count = len(bit)
        for party in (0, 1):
            kept, control = self._children[party, 0, :count], controls[party]
            _blend(kept, self._children[party, 1, :count], bit)
            mask = np.negative(control)
            kept[:, 0] ^= word[:, 0] & mask
            kept[:, 1] ^= word[:, 1] & mask
            controls[party] = (kept[:, 0] & ONE) ^ (control & bit & extra)
            value = value ^ ((kept[:, 0] >> ONE) & ONE)
            np.copyto(nodes[party], kept)
            nodes[party, :, 0] &= SEED
        return value

    def _leaves(
        self, shape: KeyShape, alpha: Numbers, nodes: Words, value: Lane, out: KeyBlock
    ) -> None:
        leaves = self._children[:, 0, : len(alpha)]
        for party in (0, 1):
            nodes[party, :, 0] ^= LEAF
            self._hash(nodes[party], leaves[party])
        np.bitwise_xor(leaves[0], leaves[1], out=out.leaves)
        low = alpha & np.uint32((1 << shape.leaf_bits) - 1)
        flip = np.negative(value)
        below = _ones_below()[low]  # (count, 2)
        out.leaves[:, 0] ^= below[:, 0] ^ flip
        out.leaves[:, 1] ^= below[:, 1] ^ flip


def _blend(target: Words, other: Words, bit: Lane) -> None:
    """target = other where the bit is set."""
    mask = np.negative(bit)
    for half in (0, 1):
        target[:, half] ^= (target[:, half] ^ other[:, half]) & mask


def _ones_below() -> Words:
    """Row p: the 128-bit word whose bits below p are set; (128, 2)."""
    rows = [(1 << p) - 1 for p in range(128)]
    return np.array([[row & int(_ALL), row >> 64] for row in rows], dtype=np.uint64)
