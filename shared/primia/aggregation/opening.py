"""The owner opens a round: from revealed shares to seeds, and the masks off the sum.

Bonawitz et al. (CCS 2017), figure 4, round 4: the self masks of survivors and the pairwise masks
between survivors and dropped nodes remain in Σ y_i; the first are reconstructed from shares of the
seeds, the second from shares of the dropped nodes' private keys. Every share is checked against
its dealer's commitment and every reconstructed secret against what its node advertised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from primia.aggregation.envelopes import SECRET_SIZES, Envelope, Kind
from primia.aggregation.errors import BelowThreshold, InconsistentRound
from primia.aggregation.keys import KeyPair, commit
from primia.aggregation.masking import Mask, Words, apply_masks, pairwise_mask, self_mask
from primia.aggregation.quantise import decode
from primia.aggregation.roster import Roster
from primia.aggregation.survivors import Outcome, Reveal
from primia.errors import PeerError
from primia.prg import Seed
from primia.sharing import Share, WrongShares, combine

Masked = TypeVar("Masked", NDArray[np.uint32], NDArray[np.uint64])
Envelopes = Mapping[str, Mapping[str, bytes]]
"""dealer -> holder -> envelope, for every member of the round."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What the reveals gave; ``rejected``: node -> why its reveal was set aside."""

    self_masks: Mapping[str, Seed] = field(repr=False)
    masking_keys: Mapping[str, KeyPair]
    rejected: Mapping[str, str]


def check_reveal(
    roster: Roster, envelopes: Envelopes, outcome: Outcome, holder: str, data: bytes
) -> Reveal:
    """A holder's reveal, if it has the one right share of every member of which it holds one.

    Raises ``MalformedMessage``, or ``InconsistentRound`` naming the dealer.
    """
    reveal = Reveal.parse(data)
    held = roster.graph.near(holder, outcome.members)
    if reveal.context != roster.context or set(reveal.shares) != set(held):
        raise InconsistentRound(f"{holder} reveals shares of another round.")
    point = roster.position(holder) + 1
    for dealer, (kind, share) in reveal.shares.items():
        envelope = Envelope.parse(envelopes[dealer][holder])
        if (
            kind is not outcome.kind(dealer)
            or share.point != point
            or not envelope.commits_to(share, kind, roster.context, dealer)
        ):
            raise InconsistentRound(f"{holder} reveals a false share of {dealer}'s secret.")
    return reveal


def recover(
    roster: Roster, envelopes: Envelopes, outcome: Outcome, reveals: Mapping[str, bytes]
) -> Recovered:
    """The survivors' self masks and the dropped nodes' masking keys.

    ``reveals``: node -> its reveal. False ones are set aside. Raises ``BelowThreshold`` if fewer
    than the threshold are left, ``InconsistentRound`` if a dealer's true shares give a secret that
    it did not advertise.
    """
    valid: list[Reveal] = []
    rejected: dict[str, str] = {}
    for holder, data in sorted(reveals.items()):
        try:
            if holder not in outcome.survivors:
                raise InconsistentRound(f"{holder} is no survivor of the round.")
            valid.append(check_reveal(roster, envelopes, outcome, holder, data))
        except PeerError as error:
            rejected[holder] = error.detail
    if len(valid) < roster.threshold:
        raise BelowThreshold(
            f"Only {len(valid)} nodes revealed valid shares; the threshold is {roster.threshold}.",
            rejected=rejected,
        )
    shares = {dealer: _shares(dealer, valid) for dealer in outcome.members}
    for dealer, found in shares.items():
        if len(found) < roster.share_threshold:
            raise BelowThreshold(
                f"Only {len(found)} of {dealer}'s neighbours revealed valid shares; "
                f"{roster.share_threshold} are needed.",
                rejected=rejected,
            )
    return Recovered(
        {node: _self_mask(roster, node, shares[node]) for node in outcome.survivors},
        {node: _masking_key(roster, node, shares[node]) for node in outcome.dropped},
        rejected,
    )


def remove_masks(total: Words, roster: Roster, outcome: Outcome, recovered: Recovered) -> None:
    """Subtract from the survivors' sum, in place, every mask that did not cancel."""
    apply_masks(total, _remaining(roster, outcome, recovered))


def remove_masks_beside(
    integers: NDArray[np.uint64], roster: Roster, outcome: Outcome, recovered: Recovered
) -> None:
    """The same from the survivors' sum of the integers that travelled beside their updates."""
    apply_masks(integers, (each.beside() for each in _remaining(roster, outcome, recovered)))


def unmask(
    total: Masked,
    roster: Roster,
    envelopes: Envelopes,
    outcome: Outcome,
    reveals: Mapping[str, bytes],
) -> Masked:
    """``recover``, then ``remove_masks``: the survivors' sum of updates or integers, in ``total``.

    Nothing is changed if it raises.
    """
    remove_masks(total, roster, outcome, recover(roster, envelopes, outcome, reveals))
    return total


def mean(
    total: NDArray[np.uint32],
    roster: Roster,
    outcome: Outcome,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """The survivors' weighted mean update from the unmasked sum, within ``quantise.step``.

    ``out`` may be ``total``'s memory (``total.view(np.float32)``).
    """
    result = np.empty(len(total), dtype=np.float32) if out is None else out
    weight = roster.weight(outcome.survivors)
    decode(total, roster.groups, roster.exponents, weight, result)
    return result


def _remaining(roster: Roster, outcome: Outcome, recovered: Recovered) -> Iterator[Mask]:
    for seed in recovered.self_masks.values():
        yield self_mask(seed, roster).inverse()
    for dropped, pair in recovered.masking_keys.items():
        for survivor in roster.graph.near(dropped, outcome.survivors):
            yield pairwise_mask(pair, roster, survivor, dropped).inverse()


def _shares(dealer: str, reveals: Sequence[Reveal]) -> list[Share]:
    return [reveal.shares[dealer][1] for reveal in reveals if dealer in reveal.shares]


def _self_mask(roster: Roster, node: str, shares: Sequence[Share]) -> Seed:
    seed = Seed(_combine(roster, node, shares, Kind.SELF_MASK))
    if commit(seed, roster.round_id, node) != roster.entry(node).commitment:
        raise _dealt_falsely(node)
    return seed


def _masking_key(roster: Roster, node: str, shares: Sequence[Share]) -> KeyPair:
    pair = KeyPair(_combine(roster, node, shares, Kind.MASKING_KEY))
    if pair.public != roster.entry(node).masking_key:
        raise _dealt_falsely(node)
    return pair


def _combine(roster: Roster, node: str, shares: Sequence[Share], kind: Kind) -> bytes:
    try:
        return combine(shares, roster.share_threshold, SECRET_SIZES[kind])
    except WrongShares:
        raise _dealt_falsely(node) from None


def _dealt_falsely(node: str) -> InconsistentRound:
    return InconsistentRound(
        f"{node} dealt shares that do not give the secret it advertised.",
        hint="The round cannot be opened; start it again without this node.",
        node=node,
    )
