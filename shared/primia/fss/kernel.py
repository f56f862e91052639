"""What a comparison kernel offers, whatever it runs on; and the key block that kernels share.

``primia.fss.generation`` and ``primia.fss.evaluation`` hold the NumPy reference. The dealer uses a
``Generator`` only, the parties an ``Evaluator`` only. A kernel owns scratch memory: one a thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from primia.errors import MalformedMessage
from primia.fss.geometry import WORD_BYTES, KeyShape, packed_bytes

Words = NDArray[np.uint64]  # (count, 2): 128-bit words, little-endian
Lane = NDArray[np.uint64]  # (count,): one half of the words, or a bit of each
Bits = NDArray[np.uint8]  # zeros and ones
Numbers = NDArray[np.uint32]


@dataclass(frozen=True, eq=False, repr=False)
class KeyBlock:
    """Views on one block of keys, common to both parties.

    ``words``: (levels, count, 2), ``leaves``: (count, 2), ``bits``: (levels, ceil(count / 8)).
    """

    words: NDArray[np.uint64]
    leaves: Words
    bits: Bits

    @classmethod
    def view(cls, shape: KeyShape, count: int, data: NDArray[np.uint8]) -> KeyBlock:
        """The block in exactly ``shape.block_bytes(count)`` bytes; read-only if they are."""
        if len(data) != shape.block_bytes(count):
            raise MalformedMessage("A block of comparison keys has the wrong size.")
        split = WORD_BYTES * count * shape.levels
        leaves_end = split + WORD_BYTES * count
        bits_end = leaves_end + shape.bit_bytes(count)
        if data[bits_end:].any():
            raise MalformedMessage("A block of comparison keys has padding that is not zero.")
        return cls(
            data[:split].view("<u8").reshape(shape.levels, count, 2),
            data[split:leaves_end].view("<u8").reshape(count, 2),
            data[leaves_end:bits_end].reshape(shape.levels, packed_bytes(count)),
        )


class Generator(Protocol):
    def generate(
        self,
        shape: KeyShape,
        alpha: Numbers,
        constant: Bits,
        roots: tuple[Words, Words],
        out: KeyBlock,
    ) -> None:
        """Write keys of x -> [x < alpha] xor constant; ``roots``: (count, 2) of P0 and of P1.

        ``alpha``, ``constant``: (count,), alpha below 2^domain_bits. The roots must be uniform and
        used for nothing else; their two lowest bits do not matter.
        """


class Evaluator(Protocol):
    def evaluate(
        self, shape: KeyShape, party: int, x: Numbers, roots: Words, key: KeyBlock
    ) -> Bits:
        """This party's share of the bit: the two parties' xor to [x < alpha] xor constant.

        ``x``: (count,), below 2^domain_bits. The result is (count,) and the caller's to keep.
        """
