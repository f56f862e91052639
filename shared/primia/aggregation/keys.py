"""Keys of one round: two X25519 pairs a node (RFC 7748), and the signed advertisement of them.

Bonawitz et al. (CCS 2017), figure 4, round 0 (AdvertiseKeys): one pair encrypts shares between
nodes, the other agrees on pairwise masks. Everything secret of a node's round derives from one
``Seed``, drawn fresh for each round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from primia.aggregation.quantise import MAX_EXPONENT, MIN_EXPONENT, Exponents
from primia.aggregation.terms import (
    MAX_NODES,
    MAX_SAMPLES,
    Assumed,
    Groups,
    RoundId,
    read_node,
)
from primia.codec import Reader, Writer
from primia.errors import InvalidInput, MalformedMessage
from primia.prg import Seed, Stream

Sign = Callable[[bytes], bytes]
"""The node's Ed25519 signature (64 bytes) over a message."""
Verify = Callable[[str, bytes, bytes], bool]
"""(node, message, signature) -> whether the signature is that enrolled node's."""

KEY_BYTES = 32
DIGEST_BYTES = 32
SIGNATURE_BYTES = 64
_MAGIC = b"PGA2"
_SIGNED = b"primia/aggregation/advertisement/2\0"
_ALL = 0xFFFF


class KeyPair:
    """An X25519 pair; prints its public half only."""

    __slots__ = ("_private", "public")

    def __init__(self, private: bytes) -> None:
        self._private = X25519PrivateKey.from_private_bytes(private)
        self.public = self._private.public_key().public_bytes_raw()

    def agree(self, peer: bytes, info: bytes, size: int) -> bytes:
        """``size`` bytes known to the holders of the two keys, for the purpose ``info``.

        Raises ``MalformedMessage`` for a peer's key of low order, which would make them public.
        """
        try:
            secret = self._private.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError:
            raise MalformedMessage("A public key is of low order and agrees on nothing.") from None
        return HKDF(algorithm=SHA256(), length=size, salt=None, info=info).derive(secret)

    def reveal(self) -> bytes:
        """The private key, to be shared among the nodes."""
        return self._private.private_bytes_raw()

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public.hex()})"


@dataclass(frozen=True, slots=True)
class RoundSecrets:
    """What a node keeps to itself in a round; a function of its seed."""

    seed: Seed

    def encryption(self) -> KeyPair:
        return self._pair("primia/aggregation/encryption-key")

    def masking(self) -> KeyPair:
        return self._pair("primia/aggregation/masking-key")

    def self_mask(self) -> Seed:
        return self.seed.derive("primia/aggregation/self-mask")

    def coefficients(self, purpose: str, context: bytes) -> Stream:
        """The coefficients of one sharing for one roster."""
        return Stream(self.seed, f"primia/aggregation/shamir/{purpose}/{context.hex()}")

    def noise(self, context: bytes) -> Stream:
        """This node's noise in the round of one roster; the same again after a crash."""
        return Stream(self.seed, f"primia/aggregation/noise/{context.hex()}")

    def _pair(self, label: str) -> KeyPair:
        return KeyPair(Stream(self.seed, label).raw(KEY_BYTES))


def commit(self_mask: Seed, round_id: RoundId, node: str) -> bytes:
    """SHA-256 commitment to a self-mask seed; hides it because it has 128 random bits."""
    writer = Writer().raw(b"primia/aggregation/self-mask-commitment/1\0")
    return sha256(round_id.write(writer).text(node).raw(self_mask.reveal()).take()).digest()


@dataclass(frozen=True, slots=True)
class Advertisement:
    """What a node tells the round of itself; all public, signed with the node's identity.

    ``assumed``: what a sparse graph is made for, None where everybody masks with everybody.
    """

    round_id: RoundId
    node: str
    threshold: int
    samples: int
    groups: Groups
    exponents: Exponents
    encryption_key: bytes
    masking_key: bytes
    commitment: bytes
    signature: bytes = b""
    assumed: Assumed | None = None

    def signed_bytes(self) -> bytes:
        return _SIGNED + self._body()

    def to_bytes(self) -> bytes:
        return _MAGIC + self._body() + self.signature

    def _body(self) -> bytes:
        writer = self.round_id.write(Writer()).text(self.node)
        writer.u16(self.threshold)
        writer.u16(_ALL if self.assumed is None else self.assumed.colluding)
        writer.u16(_ALL if self.assumed is None else self.assumed.lost)
        writer.u32(self.samples)
        self.groups.write(writer)
        for exponent in self.exponents:
            writer.u8(exponent - MIN_EXPONENT)
        return writer.raw(self.encryption_key + self.masking_key + self.commitment).take()

    @classmethod
    def parse(cls, data: bytes) -> Advertisement:
        """Raises ``MalformedMessage``. The signature is not verified here."""
        reader = Reader(data)
        reader.expect(_MAGIC, "an advertisement of round keys")
        round_id, node, threshold = RoundId.read(reader), read_node(reader), reader.u16()
        assumed = _assumed(reader.u16(), reader.u16())
        value = cls(
            round_id,
            node,
            threshold,
            reader.u32(),
            Groups.read(reader),
            (reader.u8() + MIN_EXPONENT, reader.u8() + MIN_EXPONENT),
            reader.raw(KEY_BYTES),
            reader.raw(KEY_BYTES),
            reader.raw(DIGEST_BYTES),
            reader.raw(SIGNATURE_BYTES),
            assumed,
        )
        reader.finish()
        value._check_ranges()
        return value

    def _check_ranges(self) -> None:
        if not 2 <= self.threshold <= MAX_NODES:
            raise MalformedMessage(f"{self.node} advertises a threshold of {self.threshold}.")
        if not 1 <= self.samples <= MAX_SAMPLES:
            raise MalformedMessage(f"{self.node} advertises {self.samples} samples.")
        if max(self.exponents) > MAX_EXPONENT:
            raise MalformedMessage(f"{self.node} advertises exponents past {MAX_EXPONENT}.")


def _assumed(colluding: int, lost: int) -> Assumed | None:
    if colluding == lost == _ALL:
        return None
    try:
        return Assumed(colluding, lost)
    except InvalidInput as error:
        raise MalformedMessage(error.detail) from None
