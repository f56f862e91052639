"""This site's side of secure aggregation: sealed state in, sealed state and answer out.

Keys are verified against the proposal that this site approved, whose keys are those it has
enrolled: the owner relays the messages and can put nobody else's keys in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from primia.aggregation import central, client
from primia.aggregation.keys import Sign, Verify
from primia.aggregation.quantise import exponents
from primia.aggregation.state import NodeState
from primia.aggregation.terms import Groups, RoundId
from primia.chassis.at_rest import AtRest
from primia.chassis.identity import Identity, Principal, decode_key, encode_key
from primia.errors import MalformedMessage, UnexpectedMessage
from primia.messages.rounds import (
    Confirm,
    Confirmation,
    Envelopes,
    Proposal,
    ShareKeys,
    Shares,
    Unmask,
    Upload,
)
from primia.prg import Seed

Advanced = tuple[NodeState, Envelopes | Confirmation | Shares]


def signer(identity: Identity, terms: bytes) -> Sign:
    """Signatures over messages of one round; ``terms``: messages.rounds.round_terms."""
    return lambda message: identity.sign(message + terms)


def verifier(proposal: Proposal, terms: bytes) -> Verify:
    """Signatures of the run's participants, by the keys that this site approved, over the terms
    that this site knows."""
    keys = {
        node.name: Principal(name=node.name, role="data_node", public_key=node.public_key)
        for node in proposal.nodes
    }

    def verify(node: str, message: bytes, signature: bytes) -> bool:
        try:
            keys[node].verify(message + terms, signature)
        except (KeyError, MalformedMessage):
            return False
        return True

    return verify


def begin(
    proposal: Proposal,
    identity: Identity,
    number: int,
    change: NDArray[np.float32],
    groups: Groups,
    samples: int,
    terms: bytes,
) -> tuple[NodeState, bytes, dict[str, int]]:
    """Fresh keys for the round: the secret state, the advertisement, the exponents needed."""
    private = proposal.privacy.central
    if private is not None:
        same = central.exponent(private.clip_norm, private.noise_multiplier, proposal.threshold)
        samples, needed = 1, (same, same)
    else:
        needed = exponents(change, groups)
    state, advertisement = client.advertise(
        Seed.fresh(),
        round_id=RoundId(bytes.fromhex(proposal.run), number),
        node=identity.name,
        threshold=proposal.threshold,
        samples=samples,
        groups=groups,
        exponents=needed,
        sign=signer(identity, terms),
        assumed=proposal.assumed(),
    )
    return state, advertisement, {"parameters": needed[0], "buffers": needed[1]}


def begin_counting(
    proposal: Proposal, identity: Identity, number: int, count: int, terms: bytes
) -> tuple[NodeState, bytes]:
    """Fresh keys for a round that sums ``count`` integers, which weighs and scales nothing."""
    return client.advertise(
        Seed.fresh(),
        round_id=RoundId(bytes.fromhex(proposal.run), number),
        node=identity.name,
        threshold=proposal.measuring_threshold,
        samples=1,
        groups=Groups(count, 0),
        exponents=(0, 0),
        sign=signer(identity, terms),
        assumed=proposal.assumed(measuring=True),
    )


def share_keys(state: NodeState, item: ShareKeys, verify: Verify) -> Advanced:
    state, envelopes = client.share(state, _decoded(item.roster), verify)
    sealed = {node: encode_key(data) for node, data in envelopes.items()}
    return state, Envelopes(envelopes=sealed)


def mask(
    state: NodeState, item: Upload, change: NDArray[np.float32], proposal: Proposal
) -> tuple[NodeState, NDArray[np.uint32]]:
    noise = 0.0
    private = proposal.privacy.central
    if private is not None and state.roster is not None:
        noise = central.deviation(
            private.clip_norm,
            private.noise_multiplier,
            values=len(change),
            nodes=len(state.roster.nodes),
            threshold=proposal.threshold,
        )
    return client.mask(state, _decoded(item.envelopes), change, noise=noise)


def mask_both(
    state: NodeState, item: Upload, change: NDArray[np.float32], integers: NDArray[np.uint64]
) -> tuple[NodeState, NDArray[np.uint32], NDArray[np.uint64]]:
    return client.mask_both(state, _decoded(item.envelopes), change, integers)


def mask_integers(
    state: NodeState, item: Upload, values: NDArray[np.uint64]
) -> tuple[NodeState, NDArray[np.uint64]]:
    return client.mask_integers(state, _decoded(item.envelopes), values)


def confirm(state: NodeState, item: Confirm, sign: Sign) -> Advanced:
    state, signature = client.confirm(state, item.survivors, sign, item.members)
    return state, Confirmation(signature=encode_key(signature))


def unmask(state: NodeState, item: Unmask, verify: Verify) -> Advanced:
    state, reveal = client.reveal(
        state, item.survivors, _decoded(item.confirmations), verify, item.members
    )
    return state, Shares(reveal=encode_key(reveal))


def stepper(
    item: ShareKeys | Confirm | Unmask, verify: Verify, sign: Sign
) -> Callable[[NodeState], Advanced]:
    """The step that an item asks for."""
    if isinstance(item, ShareKeys):
        return lambda state: share_keys(state, item, verify)
    if isinstance(item, Confirm):
        return lambda state: confirm(state, item, sign)
    return lambda state: unmask(state, item, verify)


def seal(state: NodeState, at_rest: AtRest, run: str, number: int) -> bytes:
    return at_rest.seal(state.to_bytes(), _purpose(run, number))


def unseal(sealed: bytes | None, at_rest: AtRest, run: str, number: int) -> NodeState:
    if sealed is None:
        raise UnexpectedMessage(f"Round {number} is over at this site; its keys are gone.")
    return NodeState.from_bytes(at_rest.open(sealed, _purpose(run, number)))


def _purpose(run: str, number: int) -> str:
    return f"primia/round-secrets/{run}/{number}"


def _decoded(values: Mapping[str, str]) -> dict[str, bytes]:
    return {node: decode_key(value) for node, value in values.items()}
