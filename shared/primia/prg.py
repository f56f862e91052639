"""The only door for randomness: seeds from the operating system, expanded by AES-128-CTR.

A ``Seed`` is a secret: it prints no content and compares in constant time. ``Stream`` expands it
under a label (HKDF-SHA256 derives the AES key, so streams with different labels are independent),
into words, bits or bytes, one stretch after another; no stretch is ever produced twice by one
stream. CTR mode as a pseudorandom generator: NIST SP 800-38A, 6.5; HKDF: RFC 5869.
"""

from __future__ import annotations

import functools
import hmac
import secrets

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

SEED_BYTES = 16
_BLOCK = 16
# update_into on reused buffers of this size runs at the speed of the AES units; larger buffers
# leave the cache.
_CHUNK = 1 << 20


class Seed:
    """16 secret bytes."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        if len(value) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes")
        self._value = bytes(value)

    @classmethod
    def fresh(cls) -> Seed:
        return cls(secrets.token_bytes(SEED_BYTES))

    def reveal(self) -> bytes:
        """The bytes, for the one message or file that must carry them."""
        return self._value

    def derive(self, label: str) -> Seed:
        """A seed for one purpose, independent of those for other labels."""
        return Seed(_hkdf(self._value, b"primia/seed/" + label.encode()))

    def __repr__(self) -> str:
        return "Seed(<16 secret bytes>)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Seed) and hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]  # a secret is no dictionary key

    def __reduce__(self) -> str:
        raise TypeError("a seed is not pickled")


def _hkdf(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=SEED_BYTES, salt=None, info=info).derive(secret)


@functools.cache
def _zeros() -> memoryview:
    return memoryview(bytes(_CHUNK))


def fresh_bytes(size: int) -> bytes:
    """Bytes from the operating system's generator, for keys, nonces and identifiers."""
    return secrets.token_bytes(size)


class Stream:
    """The AES-128-CTR key stream of a seed under a label, consumed from front to back.

    ``start``: the byte of it that comes first; what lies before costs nothing.
    """

    __slots__ = ("_encryptor",)

    def __init__(self, seed: Seed, label: str, start: int = 0) -> None:
        key = _hkdf(seed.reveal(), b"primia/stream/" + label.encode())
        block, skipped = divmod(start, _BLOCK)
        counter = block.to_bytes(_BLOCK, "big")
        self._encryptor = Cipher(AES(key), CTR(counter)).encryptor()
        self._encryptor.update(bytes(skipped))

    def fill(self, out: NDArray[np.uint8]) -> None:
        """Overwrite a contiguous byte array with the next stretch of the stream."""
        view, zeros = out.data, _zeros()
        for start in range(0, len(view), _CHUNK):
            part = view[start : start + _CHUNK]
            self._encryptor.update_into(zeros[: len(part)], part)

    def raw(self, size: int) -> bytes:
        return self._encryptor.update(bytes(size))

    def words(self, shape: int | tuple[int, ...], bits: int = 32) -> NDArray[np.uint32]:
        """Uniform integers below 2^bits (1 <= bits <= 32), 4 stream bytes each."""
        out = np.empty(shape, dtype="<u4")
        self.fill(out.reshape(-1).view(np.uint8))
        if bits < 32:
            out &= np.uint32((1 << bits) - 1)
        return out

    def bits(self, shape: int | tuple[int, ...]) -> NDArray[np.uint8]:
        """Uniform bits as uint8 zeros and ones, eight of them to a stream byte."""
        count = int(np.prod(shape, dtype=np.int64))
        packed = np.empty((count + 7) // 8, dtype=np.uint8)
        self.fill(packed)
        return np.unpackbits(packed, count=count, bitorder="little").reshape(shape)

    def __repr__(self) -> str:
        return "Stream(<secret>)"
