"""Masks over Z_2^32: one with each other node, and one of a node's own.

Bonawitz et al. (CCS 2017), section 5: node i sends

    y_i = v_i + PRG(b_i) + Σ_{j > i} PRG(s_ij) - Σ_{j < i} PRG(s_ij)    mod 2^32,

with s_ij agreed by X25519 and b_i the node's self mask. Every seed and stream label is bound to
the round's roster, which contains run and round: no stretch of mask is ever used twice.
One AES-CTR stream a mask, added in chunks of 1 MiB. Exact integers (``integers``) are masked in the
same way modulo 2^64, with 8 bytes of the stream a value; those that travel beside an update, with a
stream of their own from the same seed: what opens one of the two sums opens both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from primia.aggregation.keys import KeyPair
from primia.aggregation.roster import Roster
from primia.codec import Writer
from primia.prg import SEED_BYTES, Seed, Stream

Words = NDArray[np.uint32] | NDArray[np.uint64]
"""A vector over Z_2^32 (updates) or Z_2^64 (exact integers)."""

_CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class Mask:
    """A stream to add to a vector, or to subtract from it."""

    seed: Seed
    label: str
    negative: bool

    def inverse(self) -> Mask:
        return Mask(self.seed, self.label, not self.negative)

    def beside(self) -> Mask:
        """For the integers that travel beside the vector."""
        return Mask(self.seed, f"{self.label}/beside", self.negative)


def self_mask(seed: Seed, roster: Roster) -> Mask:
    """What the node adds for itself."""
    return Mask(seed, f"primia/aggregation/self-mask/{roster.context.hex()}", negative=False)


def pairwise_mask(pair: KeyPair, roster: Roster, node: str, peer: str) -> Mask:
    """What ``node`` adds for ``peer``; ``pair`` is the masking key of either of the two."""
    other = peer if pair.public == roster.entry(node).masking_key else node
    low, high = sorted((node, peer))
    writer = Writer().raw(b"primia/aggregation/pairwise-mask/1\0").raw(roster.context)
    purpose = writer.text(low).text(high).take()
    seed = Seed(pair.agree(roster.entry(other).masking_key, purpose, SEED_BYTES))
    label = f"primia/aggregation/pairwise-mask/{roster.context.hex()}"
    return Mask(seed, label, negative=node == high)


def apply_masks(vector: Words, masks: Iterable[Mask]) -> None:
    """Add the masks to a contiguous vector in place, modulo 2^32 or 2^64 as its type says."""
    buffer = np.empty(min(_CHUNK, len(vector)), dtype=vector.dtype)
    for mask in masks:
        stream = Stream(mask.seed, mask.label)
        combine = np.subtract if mask.negative else np.add
        for start in range(0, len(vector), _CHUNK):
            part = vector[start : start + _CHUNK]
            words = buffer[: len(part)]
            stream.fill(words.view(np.uint8))
            combine(part, words, out=part)
