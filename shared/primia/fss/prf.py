"""The tree's one-way function: h(x) = AES_K(x) xor x with a fixed, public K, on many blocks.

Guo, Katz, Wang, Yu: Efficient and Secure Multiparty Computation from Fixed-Key Block Ciphers (IEEE
S&P 2020), Matyas-Meyer-Oseas. One instance a thread: it owns an output buffer.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from primia.fss.geometry import BLOCK, WORD_BYTES
from primia.fss.kernel import Words

PUBLIC_KEY = b"PriMIA Grid DCF1"
# OpenSSL's update may write up to one block less one byte beyond its input.
_SLACK = WORD_BYTES - 1

# A node's two lowest bits are its control and its value bit; they are cleared where it is a seed,
# which leaves room for the child's number, and for LEAF in place of it.
ONE = np.uint64(1)
LEAF = np.uint64(2)
SEED = ~np.uint64(3)


class FixedKeyHash:
    def __init__(self) -> None:
        # A fixed public permutation, not encryption: ECB is exactly that permutation.
        self._permutation = Cipher(AES(PUBLIC_KEY), ECB()).encryptor()  # noqa: S305
        self._buffer = np.empty(BLOCK * WORD_BYTES + _SLACK, dtype=np.uint8)

    def __call__(self, x: Words, out: Words) -> None:
        """out = h(x); both (count, 2) contiguous, count <= BLOCK, not the same array."""
        size = x.nbytes
        self._permutation.update_into(x.data.cast("B"), self._buffer.data)
        np.bitwise_xor(self._buffer[:size].view(np.uint64).reshape(x.shape), x, out=out)
