"""The shape of a comparison key (DCF): how many tree levels, how many bytes.

A key for a domain of ``domain_bits`` bits has a tree over the upper bits; the lower seven (or all,
of a smaller domain) are one 128-bit leaf block (early termination). Per comparison a level takes a
128-bit correction word and one bit, the leaf 128 bits; all of it is common to the two parties.
Comparisons are stored in blocks of ``BLOCK``: first the words, level-major, then the leaves, then
the bits, padded with zeros to 16 bytes so that every word is aligned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

LEAF_BITS = 7
WORD_BYTES = 16
MAX_DOMAIN_BITS = 31
# 2^16 comparisons make one level's correction words 1 MiB: they stay in the cache.
BLOCK = 1 << 16


@dataclass(frozen=True)
class KeyShape:
    """``domain_bits``: bits of the compared numbers, 1 to 31."""

    domain_bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.domain_bits <= MAX_DOMAIN_BITS:
            raise ValueError(f"a comparison key compares 1 to {MAX_DOMAIN_BITS} bits")

    @property
    def levels(self) -> int:
        return max(0, self.domain_bits - LEAF_BITS)

    @property
    def leaf_bits(self) -> int:
        return min(self.domain_bits, LEAF_BITS)

    def block_bytes(self, count: int) -> int:
        """Bytes of one block of ``count`` <= BLOCK keys."""
        return WORD_BYTES * count * (self.levels + 1) + self.bit_bytes(count) + self.padding(count)

    def bit_bytes(self, count: int) -> int:
        return self.levels * packed_bytes(count)

    def padding(self, count: int) -> int:
        return -self.bit_bytes(count) % WORD_BYTES

    def key_bytes(self, count: int) -> int:
        """Bytes of ``count`` keys in their blocks."""
        return sum(self.block_bytes(stop - start) for start, stop in blocks(count))


def packed_bytes(bits: int) -> int:
    return (bits + 7) // 8


def blocks(count: int) -> Iterator[tuple[int, int]]:
    """The half-open ranges of the blocks of ``count`` comparisons."""
    for start in range(0, count, BLOCK):
        yield start, min(start + BLOCK, count)
