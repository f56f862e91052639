"""A data node's side of secure aggregation: a state and an inbound message -> a new state and an
outbound one (Bonawitz et al., CCS 2017, figure 4).

    state, advertisement = advertise(Seed.fresh(), ...)           after local training
    state, envelopes     = share(state, roster, verify)           {holder: envelope}
    state, vector        = mask(state, envelopes, update)         4 bytes a value, for wire.frame
                         or mask_integers(state, envelopes, values)    8 bytes a value
                         or mask_both(state, envelopes, update, integers)
    state, signature     = confirm(state, survivors, sign)
    state, reveal        = reveal(state, survivors, confirmations, verify)

Store the new state *before* sending what came with it, and never go back to an older one. Each
answer is a function of state and message: after a crash repeat the step with the same message to
get the same answer; another message for an answered step raises ``UnexpectedMessage``. On any
error the old state remains valid. Delete the state when the round is over, and never start a round
twice with one seed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from primia.aggregation.central import add_noise
from primia.aggregation.envelopes import deal, unseal
from primia.aggregation.errors import BelowThreshold, InconsistentRound
from primia.aggregation.integers import check_integers
from primia.aggregation.keys import Advertisement, RoundSecrets, Sign, Verify, commit
from primia.aggregation.masking import Mask, apply_masks, pairwise_mask, self_mask
from primia.aggregation.quantise import Exponents, check_update, encode
from primia.aggregation.roster import Roster
from primia.aggregation.state import NodeState, Phase, Step
from primia.aggregation.survivors import Outcome, Reveal
from primia.aggregation.terms import (
    MAX_SAMPLES,
    Assumed,
    Groups,
    RoundId,
    check_node,
    check_threshold,
)
from primia.codec import Writer
from primia.errors import InvalidInput, UnexpectedMessage
from primia.prg import Seed


def advertise(
    seed: Seed,
    *,
    round_id: RoundId,
    node: str,
    threshold: int,
    samples: int,
    groups: Groups,
    exponents: Exponents,
    sign: Sign,
    assumed: Assumed | None = None,
) -> tuple[NodeState, bytes]:
    """Round 0: the signed public keys of this node for this round.

    ``seed`` is fresh and used for no other round. ``threshold`` is the one that the node approved
    with the run; ``exponents`` come from ``quantise.exponents(update, groups)``; ``samples`` weigh
    the update and are public. ``assumed``: with it a large round has a sparse graph (``graph``).
    Raises ``InvalidInput``.
    """
    check_node(node)
    if not 1 <= samples <= MAX_SAMPLES:
        raise InvalidInput(f"An update over {samples} samples cannot be weighted.")
    check_threshold(threshold, threshold)
    secrets = RoundSecrets(seed)
    unsigned = Advertisement(
        round_id,
        node,
        threshold,
        samples,
        groups,
        exponents,
        secrets.encryption().public,
        secrets.masking().public,
        commit(secrets.self_mask(), round_id, node),
        assumed=assumed,
    )
    advertisement = replace(unsigned, signature=sign(unsigned.signed_bytes()))
    # What a peer would refuse fails here.
    advertisement = Advertisement.parse(advertisement.to_bytes())
    return NodeState(secrets, advertisement), advertisement.to_bytes()


def share(
    state: NodeState, advertisements: Mapping[str, bytes], verify: Verify
) -> tuple[NodeState, dict[str, bytes]]:
    """Round 1: for each neighbour (``graph``) and this node itself an envelope of 152 bytes.

    ``advertisements``: of all nodes of the round, by node. Raises what ``Roster.of`` does, and
    ``InconsistentRound`` if this node's own advertisement is missing or altered, or the others'
    belong to another round.
    """
    roster = Roster.of(advertisements, verify)
    if roster.entry(state.node) != state.advertisement:
        raise InconsistentRound(f"The roster alters the advertisement of {state.node}.")
    phase = state.advance(Step.SHARE, roster.context)
    envelopes = deal(state.secrets, roster, state.node)
    return _next(state, phase, roster.context, roster=roster), envelopes


def mask(
    state: NodeState,
    envelopes: Mapping[str, bytes],
    update: NDArray[np.float32],
    out: NDArray[np.uint32] | None = None,
    noise: float = 0.0,
) -> tuple[NodeState, NDArray[np.uint32]]:
    """Round 2: the weighted, quantised and masked update, uint32 of the update's length.

    ``envelopes``: dealer -> the envelope it sealed for this node; the dealers are the round's
    members and include this node. ``out`` may be the update's own memory
    (``update.view(np.uint32)``) unless the step must be repeatable. ``noise``: deviation of the
    normal noise that this node adds, in units of the ring (``central``). Raises ``InvalidUpdate``,
    ``MalformedMessage`` (naming the dealer of a false envelope), ``BelowThreshold``,
    ``InconsistentRound``.
    """
    roster = _roster(state, Step.MASK)
    check_update(update, roster.groups)
    state, members = _join(state, roster, envelopes, update)
    vector = np.empty(roster.groups.size, dtype="<u4") if out is None else out
    samples = state.advertisement.samples
    encode(update, roster.groups, roster.exponents, samples, roster.samples, vector)
    if noise:
        add_noise(vector, state.secrets.noise(roster.context), noise)
    apply_masks(vector, _masks(state, roster, members))
    return state, vector


def mask_both(
    state: NodeState,
    envelopes: Mapping[str, bytes],
    update: NDArray[np.float32],
    integers: NDArray[np.uint64],
) -> tuple[NodeState, NDArray[np.uint32], NDArray[np.uint64]]:
    """Round 2 of a round that sums integers beside the updates: (state, masked update, masked
    integers). Both sums are over the same survivors and are opened by the same reveals.

    Raises as ``mask`` and ``mask_integers`` do.
    """
    roster = _roster(state, Step.MASK)
    check_update(update, roster.groups)
    check_integers(integers, len(integers), len(roster.nodes))
    state, members = _join(state, roster, envelopes, update, integers)
    vector = np.empty(roster.groups.size, dtype="<u4")
    samples = state.advertisement.samples
    encode(update, roster.groups, roster.exponents, samples, roster.samples, vector)
    apply_masks(vector, _masks(state, roster, members))
    beside = integers.astype("<u8")
    apply_masks(beside, (each.beside() for each in _masks(state, roster, members)))
    return state, vector, beside


def mask_integers(
    state: NodeState, envelopes: Mapping[str, bytes], values: NDArray[np.uint64]
) -> tuple[NodeState, NDArray[np.uint64]]:
    """Round 2 of a round that sums integers: the masked values, uint64 of the same length.

    Weighs nothing; the sum is exact (``integers.check_integers``). Raises as ``mask`` does.
    """
    roster = _roster(state, Step.MASK)
    check_integers(values, roster.groups.size, len(roster.nodes))
    state, members = _join(state, roster, envelopes, values)
    vector = values.astype("<u8")
    apply_masks(vector, _masks(state, roster, members))
    return state, vector


def _join(
    state: NodeState,
    roster: Roster,
    envelopes: Mapping[str, bytes],
    *values: NDArray[np.float32] | NDArray[np.uint64],
) -> tuple[NodeState, tuple[str, ...]]:
    """The state once the envelopes are opened, and the members to mask with."""
    members = roster.neighbourhood(state.node, envelopes)
    _check_presence(state, members, "members")
    request = _digest_of_mask(members, envelopes, *values)
    phase = state.advance(Step.MASK, request)
    holdings = {
        dealer: unseal(state.secrets, roster, dealer, state.node, envelopes[dealer])
        for dealer in members
    }
    return _next(state, phase, request, holdings=holdings), members


def confirm(
    state: NodeState,
    survivors: Iterable[str],
    sign: Sign,
    members: Iterable[str] | None = None,
) -> tuple[NodeState, bytes]:
    """Round 3: this node's signature (64 bytes) over roster, members and survivors.

    ``members`` are needed in a sparse graph, where a node has heard from its neighbours only.
    Raises ``BelowThreshold``, ``InconsistentRound`` (also if this node is not among them).
    """
    roster = _roster(state, Step.CONFIRM)
    outcome = _outcome(state, roster, survivors, members)
    signed = outcome.signed_bytes(roster)
    request = sha256(signed).digest()
    phase = state.advance(Step.CONFIRM, request)
    return _next(state, phase, request, survivors=outcome.survivors), sign(signed)


def reveal(
    state: NodeState,
    survivors: Iterable[str],
    confirmations: Mapping[str, bytes],
    verify: Verify,
    members: Iterable[str] | None = None,
) -> tuple[NodeState, bytes]:
    """Round 4: this node's share of each survivor's self mask and each dropped node's masking key.

    ``survivors`` must be those confirmed; ``confirmations``: node -> signature, at least the
    threshold of them valid over this very set, in a sparse graph those of all surviving neighbours
    among them. Raises ``BelowThreshold`` otherwise,
    ``UnexpectedMessage`` for another set than the confirmed one.
    """
    roster = _roster(state, Step.REVEAL)
    outcome = _outcome(state, roster, survivors, members)
    request = sha256(outcome.signed_bytes(roster)).digest()
    phase = state.advance(Step.REVEAL, request)
    if request != state.requests[Step.CONFIRM]:
        raise UnexpectedMessage(
            f"{state.node} has confirmed another survivor set and reveals nothing for this one."
        )
    confirmed = outcome.confirmed_by(roster, confirmations, verify)
    if len(confirmed) < roster.threshold:
        raise BelowThreshold(
            f"Only {len(confirmed)} valid confirmations of the survivor set; the threshold is "
            f"{roster.threshold}."
        )
    _check_neighbours_confirmed(state, roster, outcome, confirmed)
    shares = {
        dealer: (outcome.kind(dealer), state.holdings[dealer].share(outcome.kind(dealer)))
        for dealer in roster.graph.near(state.node, outcome.members)
    }
    answer = Reveal(roster.context, shares).to_bytes()
    return _next(state, phase, request), answer


def _check_neighbours_confirmed(
    state: NodeState, roster: Roster, outcome: Outcome, confirmed: Collection[str]
) -> None:
    """In a sparse graph a node may have masked with fewer neighbours than its peers believe: an
    owner need only keep envelopes from it. It says by confirming that it has not, and nothing of
    its self mask is revealed before."""
    if roster.graph.degree is None:
        return
    silent = [n for n in roster.graph.near(state.node, outcome.survivors) if n not in confirmed]
    if silent:
        raise BelowThreshold(
            f"{', '.join(silent)} of {state.node}'s neighbours did not confirm whom they have "
            "masked with."
        )


def _roster(state: NodeState, step: Step) -> Roster:
    state.expect(step)
    assert state.roster is not None  # every phase after the first has one
    return state.roster


def _next(state: NodeState, phase: Phase, request: bytes, **changes: object) -> NodeState:
    if phase is state.phase:
        return state
    changed: NodeState = replace(
        state,
        phase=phase,
        requests=(*state.requests, request),
        **changes,  # type: ignore[arg-type]  # the fields of NodeState, as the callers give them
    )
    return changed


def _outcome(
    state: NodeState,
    roster: Roster,
    survivors: Iterable[str],
    members: Iterable[str] | None,
) -> Outcome:
    outcome = Outcome.of(roster, state.holdings if members is None else members, survivors)
    if roster.graph.near(state.node, outcome.members) != tuple(sorted(state.holdings)):
        raise InconsistentRound(f"{state.node} has masked with other members than are named.")
    _check_presence(state, outcome.survivors, "survivors")
    return outcome


def _check_presence(state: NodeState, nodes: Iterable[str], what: str) -> None:
    if state.node not in nodes:
        raise InconsistentRound(f"{state.node} itself is not among the {what}.")


def _masks(state: NodeState, roster: Roster, members: Iterable[str]) -> Iterable[Mask]:
    yield self_mask(state.secrets.self_mask(), roster)
    pair = state.secrets.masking()
    for peer in members:
        if peer != state.node:
            yield pairwise_mask(pair, roster, state.node, peer)


def _digest_of_mask(
    members: Iterable[str],
    envelopes: Mapping[str, bytes],
    *values: NDArray[np.float32] | NDArray[np.uint64],
) -> bytes:
    writer = Writer()
    for dealer in members:
        writer.text(dealer).blob(envelopes[dealer])
    digest = sha256(writer.take())
    for each in values:
        digest.update(each.view(np.uint8).data)
    return digest.digest()
