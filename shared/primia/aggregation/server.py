"""The model owner's side of secure aggregation: check what came, compose what goes out, sum, open.

Per step: a check for one node's answer, to be made when it arrives (so that a false one is refused
and loses nothing), and what is sent to every node once the step is closed.

    0  check_advertisement   roster         -> {node: advertisement} to every node
    1  check_envelopes       inbox          -> {dealer: envelope} to each holder
    2  wire.read_header, RunningSum.add     -> survivors to every survivor
    3  check_confirmation    (as they came) -> survivors and {node: signature} to every survivor
    4  check_reveal          unmask, mean

The owner keeps: the advertisements, the envelopes (dealer -> holder -> bytes), one running sum, who
is in it, and the reveals. ``Roster.of`` and ``Outcome.of`` rebuild the public facts from these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from primia.aggregation.envelopes import Envelope
from primia.aggregation.errors import InconsistentRound, InvalidSignature
from primia.aggregation.keys import Advertisement, Verify
from primia.aggregation.masking import Words
from primia.aggregation.opening import (
    Envelopes,
    check_reveal,
    mean,
    recover,
    remove_masks,
    remove_masks_beside,
    unmask,
)
from primia.aggregation.roster import Roster, check_signature
from primia.aggregation.survivors import Outcome
from primia.aggregation.terms import MAX_VALUES, Assumed, Groups, RoundId
from primia.aggregation.wire import Kind, Payload, chunks, side_by_side
from primia.errors import InvalidInput

__all__ = [
    "Envelopes",
    "Outcome",
    "Roster",
    "RunningSum",
    "check_advertisement",
    "check_confirmation",
    "check_envelopes",
    "check_reveal",
    "inbox",
    "masked_sum",
    "mean",
    "recover",
    "remove_masks",
    "remove_masks_beside",
    "unmask",
]


class RunningSum:
    """Σ of masked vectors in Z_2^32, or of integers in Z_2^64: one vector, however many nodes.

    ``total`` may be given (a stored sum, a memory map) and is added to in place. An ``add`` that
    raises leaves the sum undefined: store it together with the names of the nodes that it contains,
    and go back to what is stored.
    """

    def __init__(self, count: int, total: Words | None = None, kind: Kind = Kind.MASKED) -> None:
        if not 1 <= count <= MAX_VALUES:
            raise InvalidInput(f"A sum of {count} values is not accepted.")
        self._dtype = kind.dtype
        self.total: Words = np.zeros(count, dtype=self._dtype) if total is None else total
        if self.total.shape != (count,) or self.total.dtype != np.dtype(self._dtype):
            raise InvalidInput(
                f"The stored sum is not a vector of {count} {kind.name.lower()} values."
            )

    def add(self, payload: Payload) -> None:
        """Add a payload of exactly so many values; raises ``MalformedMessage`` otherwise."""
        for part, words in chunks(payload, len(self.total), self._dtype):
            np.add(self.total[part], words, out=self.total[part])


def masked_sum(
    count: int, updates: Sequence[Payload], kind: Kind, before: Payload | None = None
) -> Iterator[tuple[slice, Words]]:
    """The sum of ``RunningSum`` over all updates at once, in pieces: (where, words).

    ``before``: a sum to begin with. A piece is overwritten by the next one.
    """
    for part, total, pieces in side_by_side(count, updates, kind.dtype, before, kind.dtype):
        for words in pieces:
            np.add(total, words, out=total)
        yield part, total


def check_advertisement(
    data: bytes,
    node: str,
    round_id: RoundId,
    threshold: int,
    groups: Groups,
    verify: Verify,
    assumed: Assumed | None = None,
) -> Advertisement:
    """A node's advertisement, if it is that node's, signed, and for this round.

    Raises ``MalformedMessage``, ``InconsistentRound``, ``InvalidSignature``.
    """
    found = Advertisement.parse(data)
    stated = (found.node, found.round_id, found.threshold, found.assumed, found.groups)
    if stated != (node, round_id, threshold, assumed, groups):
        raise InconsistentRound(
            f"{node} advertises keys for another node, round, threshold, graph or vector size."
        )
    check_signature(found, verify)
    return found


def check_envelopes(roster: Roster, dealer: str, envelopes: Mapping[str, bytes]) -> None:
    """Raises ``MalformedMessage``, or ``InconsistentRound`` unless there is one a holder."""
    roster.position(dealer)
    if set(envelopes) != set(roster.graph.holders(dealer)):
        raise InconsistentRound(f"{dealer} did not send one envelope to each of its holders.")
    for data in envelopes.values():
        Envelope.parse(data)


def inbox(envelopes: Envelopes, holder: str) -> dict[str, bytes]:
    """dealer -> the envelope that it sealed for ``holder``: the members among its neighbours."""
    return {dealer: sealed[holder] for dealer, sealed in envelopes.items() if holder in sealed}


def check_confirmation(
    roster: Roster, outcome: Outcome, node: str, signature: bytes, verify: Verify
) -> None:
    """Raises ``InvalidSignature`` unless it is a survivor's, over this very outcome."""
    if not outcome.confirmed_by(roster, {node: signature}, verify):
        raise InvalidSignature(f"{node} did not confirm this survivor set with its signature.")
