"""Shares of a node's round secrets, sealed for each holder (Bonawitz et al., round 1: ShareKeys).

The dealer of a round gives its neighbours (``graph``) and itself one envelope each of
``ENVELOPE_BYTES``: SHA-256 commitments to the two shares, then both shares under
ChaCha20-Poly1305. The key comes from HKDF over the X25519 agreement of dealer and holder, with
roster, dealer and holder as its purpose, so it encrypts one message in one direction in one round
and the nonce can be constant. The commitments let the owner tell false shares from true ones later.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from primia.aggregation.errors import InconsistentRound
from primia.aggregation.keys import DIGEST_BYTES, KeyPair, RoundSecrets
from primia.aggregation.roster import Roster
from primia.codec import Reader, Writer
from primia.errors import MalformedMessage
from primia.prg import SEED_BYTES
from primia.sharing import SHARE_BYTES, Share, split_at

_MAGIC = b"PGE1"
_TAG_BYTES = 16
_SEALED_BYTES = 2 * SHARE_BYTES + _TAG_BYTES
_KEY_BYTES = 32
_NONCE = bytes(12)
ENVELOPE_BYTES = len(_MAGIC) + 2 * DIGEST_BYTES + _SEALED_BYTES


class Kind(IntEnum):
    """Of which secret a share is; a node reveals one kind a dealer, never both."""

    MASKING_KEY = 0
    SELF_MASK = 1


SECRET_SIZES = {Kind.MASKING_KEY: 32, Kind.SELF_MASK: SEED_BYTES}


@dataclass(frozen=True, slots=True)
class Holding:
    """A node's shares of one dealer's secrets."""

    masking_key: Share
    self_mask: Share

    def share(self, kind: Kind) -> Share:
        return self.masking_key if kind is Kind.MASKING_KEY else self.self_mask

    def to_bytes(self) -> bytes:
        return self.masking_key.to_bytes() + self.self_mask.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Holding:
        if len(data) != 2 * SHARE_BYTES:
            raise MalformedMessage(f"Two shares have {2 * SHARE_BYTES} bytes, not {len(data)}.")
        return cls(Share.from_bytes(data[:SHARE_BYTES]), Share.from_bytes(data[SHARE_BYTES:]))


@dataclass(frozen=True, slots=True)
class Envelope:
    """Commitments to both shares, and the shares sealed; public."""

    commitments: tuple[bytes, bytes]
    sealed: bytes

    def to_bytes(self) -> bytes:
        return _MAGIC + b"".join(self.commitments) + self.sealed

    @classmethod
    def parse(cls, data: bytes) -> Envelope:
        reader = Reader(data)
        reader.expect(_MAGIC, "an envelope of shares")
        commitments = reader.raw(DIGEST_BYTES), reader.raw(DIGEST_BYTES)
        value = cls(commitments, reader.raw(_SEALED_BYTES))
        reader.finish()
        return value

    def commits_to(self, share: Share, kind: Kind, context: bytes, dealer: str) -> bool:
        return hmac.compare_digest(
            self.commitments[kind], commit_share(share, kind, context, dealer)
        )


def commit_share(share: Share, kind: Kind, context: bytes, dealer: str) -> bytes:
    """SHA-256 commitment; it hides the share, whose value is uniform in 2^256."""
    writer = Writer().raw(b"primia/aggregation/share-commitment/1\0").raw(context)
    return sha256(writer.text(dealer).u8(kind).raw(share.to_bytes()).take()).digest()


def deal(secrets: RoundSecrets, roster: Roster, dealer: str) -> dict[str, bytes]:
    """The dealer's envelopes, by holder. Deterministic."""
    holders = roster.graph.holders(dealer)
    holdings = _split(secrets, roster, holders)
    pair = secrets.encryption()
    return {
        holder: _seal(pair, roster, dealer, holder, holding).to_bytes()
        for holder, holding in zip(holders, holdings, strict=True)
    }


def _split(secrets: RoundSecrets, roster: Roster, holders: Sequence[str]) -> list[Holding]:
    points = [roster.position(holder) + 1 for holder in holders]
    values = (
        ("masking-key", secrets.masking().reveal()),
        ("self-mask", secrets.self_mask().reveal()),
    )
    keys, seeds = (
        split_at(
            value,
            roster.share_threshold,
            points,
            secrets.coefficients(purpose, roster.context),
        )
        for purpose, value in values
    )
    return [Holding(key, seed) for key, seed in zip(keys, seeds, strict=True)]


def _seal(pair: KeyPair, roster: Roster, dealer: str, holder: str, holding: Holding) -> Envelope:
    commitments = (
        commit_share(holding.masking_key, Kind.MASKING_KEY, roster.context, dealer),
        commit_share(holding.self_mask, Kind.SELF_MASK, roster.context, dealer),
    )
    purpose = _purpose(roster, dealer, holder)
    key = pair.agree(roster.entry(holder).encryption_key, purpose, _KEY_BYTES)
    bound = purpose + b"".join(commitments)
    return Envelope(commitments, ChaCha20Poly1305(key).encrypt(_NONCE, holding.to_bytes(), bound))


def unseal(secrets: RoundSecrets, roster: Roster, dealer: str, holder: str, data: bytes) -> Holding:
    """The holder's shares of the dealer's secrets.

    Raises ``MalformedMessage`` if the bytes are no envelope or were not sealed by this dealer for
    this holder in this round, ``InconsistentRound`` if the dealer put other shares inside than it
    committed to.
    """
    envelope = Envelope.parse(data)
    purpose = _purpose(roster, dealer, holder)
    key = secrets.encryption().agree(roster.entry(dealer).encryption_key, purpose, _KEY_BYTES)
    bound = purpose + b"".join(envelope.commitments)
    try:
        opened = ChaCha20Poly1305(key).decrypt(_NONCE, envelope.sealed, bound)
    except InvalidTag:
        raise MalformedMessage(
            f"The envelope from {dealer} is not authentic for {holder} in this round."
        ) from None
    holding = Holding.from_bytes(opened)
    for kind in Kind:
        share = holding.share(kind)
        if share.point != roster.position(holder) + 1 or not envelope.commits_to(
            share, kind, roster.context, dealer
        ):
            raise InconsistentRound(f"{dealer} sealed another share than it committed to.")
    return holding


def _purpose(roster: Roster, dealer: str, holder: str) -> bytes:
    writer = Writer().raw(b"primia/aggregation/envelope/1\0").raw(roster.context)
    return writer.text(dealer).text(holder).take()
