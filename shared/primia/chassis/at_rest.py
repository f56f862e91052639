"""Encryption at rest of the secrets that a service must keep across a crash (AES-256-GCM)."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from primia.errors import LocalError
from primia.prg import fresh_bytes

_NONCE_BYTES = 12


class AtRest:
    """Seals bytes under the service's own key; ``purpose`` binds them to their place."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, secret: bytes, purpose: str) -> bytes:
        nonce = fresh_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret, purpose.encode())

    def open(self, sealed: bytes, purpose: str) -> bytes:
        nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, body, purpose.encode())
        except InvalidTag as error:
            raise LocalError(
                "A secret in the database cannot be opened with this service's identity key.",
                hint="Was the key replaced, or the row moved?",
            ) from error

    def __repr__(self) -> str:
        return "AtRest(<secret>)"
