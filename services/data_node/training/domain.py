"""The rules of taking part in a training run: pure checks and transition tables.

A run as the node sees it, a round as the node sees it, and what must hold before the node accepts
a proposal. The owner relays all that the nodes say to one another, so the one thing it must not be
able to do is to stand in for a node: the identity keys of a proposal are compared with those that
this site has enrolled itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Literal

from primia.aggregation.terms import least_threshold
from primia.errors import (
    Conflict,
    PeerError,
    PeerUnavailable,
    PrimiaError,
    StorageFull,
    UnexpectedMessage,
)
from primia.messages.rounds import (
    Failure,
    NodeCard,
    Proposal,
    WorkItem,
    contributes_nothing,
    decided_elsewhere,
)

RunState = Literal["pending", "active", "refused", "withdrawn", "finished", "cancelled", "failed"]
Policy = Literal["manual", "auto"]
Phase = Literal["trained", "shared", "masked", "confirmed", "revealed"]
RoundKind = Literal["train", "measure", "evaluate"]
ItemState = Literal["open", "waiting", "answered", "sent", "dropped"]

RUN_TRANSITIONS: Mapping[RunState, frozenset[RunState]] = {
    "pending": frozenset({"active", "refused", "cancelled", "failed"}),
    "active": frozenset({"withdrawn", "finished", "cancelled", "failed"}),
    "refused": frozenset(),
    "withdrawn": frozenset(),
    "finished": frozenset(),
    "cancelled": frozenset(),
    "failed": frozenset(),
}
ENDED: frozenset[RunState] = frozenset(s for s, after in RUN_TRANSITIONS.items() if not after)

# The phase of the round that an item asks for, and the one it leads to.
SECURE_STEPS: Mapping[str, tuple[Phase | None, Phase]] = {
    "measure": (None, "trained"),
    "train": (None, "trained"),
    "evaluate": (None, "trained"),
    "share_keys": ("trained", "shared"),
    "upload": ("shared", "masked"),
    "confirm": ("masked", "confirmed"),
    "unmask": ("confirmed", "revealed"),
}
PLAIN_STEPS: Mapping[str, tuple[Phase | None, Phase]] = {
    "train": (None, "trained"),
    "upload": ("trained", "masked"),
}


def move(present: RunState, wanted: RunState) -> RunState:
    if wanted not in RUN_TRANSITIONS[present]:
        raise Conflict(f"A run that is {present} cannot become {wanted}.")
    return wanted


def next_phase(kind: str, phase: Phase | None, *, secure: bool) -> Phase:
    """The phase after an item of this kind; UnexpectedMessage if the round is not at its step."""
    step = (SECURE_STEPS if secure else PLAIN_STEPS).get(kind)
    if step is None or step[0] != phase:
        raise UnexpectedMessage(
            f"The model owner asked for {kind!r} while this site's round is "
            f"{phase or 'not begun'}; the request is not answered."
        )
    return step[1]


def check_new_round(number: int, current: int, rounds: int) -> None:
    """Numbers only rise, up to the highest that was approved: a round that too few could finish is
    repeated under a new number. Counting those that the owner acknowledged would not do: it may
    read an answer and refuse it."""
    if number <= current:
        raise UnexpectedMessage(
            f"The model owner asked for round {number} after round {current} had begun."
        )
    if number > rounds:
        raise UnexpectedMessage(
            f"The model owner asked for round {number} of a run of at most {rounds}."
        )


def outward(error: PrimiaError) -> Failure:
    """What the owner may know of a failure: of our own errors the kind alone, since their details
    may name files, and so patients."""
    detail = error.detail if isinstance(error, PeerError) else f"{error.title}."
    return Failure(code=error.code, detail=detail[:2000])


def passes(error: PrimiaError) -> bool:
    """Whether waiting may help: the owner is away or confused, or the disk is full."""
    if isinstance(error, PeerUnavailable | StorageFull):
        return True
    status = error.extra.get("status_of_peer")
    return isinstance(status, int) and (status in (401, 403, 408, 429) or status >= 500)


def check_statistics(wanted: bool, given: bool) -> None:
    """Training starts from statistics exactly where the approved proposal says so."""
    if wanted != given:
        state = "come without" if wanted else "come with"
        raise UnexpectedMessage(f"The weights {state} statistics, against the approved proposal.")


def check_still_trains(proposal: Proposal, *, stopped: bool) -> None:
    """A site that early stopping has stopped gives no more updates to secure sums, whoever asks."""
    if stopped and proposal.secure and proposal.privacy.central is None:
        raise UnexpectedMessage(
            "Early stopping has ended training at this site; its zeros would uncover the other "
            "sites' updates."
        )


def adding(asked: Mapping[str, int], nodes: Sequence[str], threshold: int) -> frozenset[str]:
    """The sites of a round that add their figures to its sum: the largest set in which each finds
    as many as it asks for, whoever drops out.

    Of any ``threshold`` survivors all but those that add nothing are in the set: that many at
    least. ``asked``: site -> how many it asks for. Every site comes to the same set, since the list
    and the roster are signed.
    """
    found = frozenset(nodes) & frozenset(asked)
    while True:
        sure = threshold - (len(nodes) - len(found))
        left = frozenset(node for node in found if asked[node] <= sure)
        if left == found:
            return found
        found = left


def item_round(item: WorkItem) -> int:
    """The round of an item; 0 for those that concern the whole run."""
    return int(getattr(item, "round", 0))


def digest(message: Proposal | WorkItem) -> str:
    """SHA-256 of the message, whatever the order of its JSON: what was approved, or asked for."""
    text = json.dumps(message.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def objections(
    proposal: Proposal, *, me: NodeCard, owner: str, enrolled: Mapping[str, str]
) -> list[str]:
    """Why this site must not take part; empty if it may. ``enrolled``: node -> its key here."""
    found = []
    if proposal.owner != owner:
        found.append(f"The proposal names {proposal.owner} as the model owner, not {owner}.")
    found += _strangers(proposal, me, enrolled)
    found += _unsafe_threshold(proposal)
    if proposal.secure and contributes_nothing(proposal.training, proposal.privacy):
        found.append(
            "Sites that have stopped would contribute zeros (local_stopping.when_stopped), which "
            "uncovers the updates of the others in the sum."
        )
    found += _uncovered(proposal)
    found += _not_followed(proposal)
    return found


def _strangers(proposal: Proposal, me: NodeCard, enrolled: Mapping[str, str]) -> list[str]:
    found = []
    names = [node.name for node in proposal.nodes]
    if len(set(names)) != len(names):
        found.append("The proposal names a node twice.")
    if me.name not in names:
        found.append(f"The proposal does not name this node, {me.name}.")
    known = {**enrolled, me.name: me.public_key}
    for node in proposal.nodes:
        if node.name not in known:
            found.append(f"{node.name} is not enrolled at this site.")
        elif known[node.name] != node.public_key:
            found.append(f"{node.name} comes with another identity key than is enrolled here.")
    return found


def _unsafe_threshold(proposal: Proposal) -> list[str]:
    """With half the nodes or fewer, two disjoint groups could each be made to open the round."""
    nodes, threshold = proposal.sites_per_round or len(proposal.nodes), proposal.threshold
    if not proposal.secure:
        return []
    if threshold > nodes:
        return [f"The threshold {threshold} is above the number of nodes in a round, {nodes}."]
    if threshold < least_threshold(nodes):
        return [f"The threshold {threshold} is not more than half of {nodes} nodes, or below 2."]
    assumed = proposal.assumed()
    if threshold < least_threshold(nodes, assumed):
        return [
            f"The threshold {threshold} is too small for {nodes} nodes of which "
            f"{assumed.colluding if assumed else 0} may collude."
        ]
    return []


def _not_followed(proposal: Proposal) -> list[str]:
    """An external model is trained by this site's own code, which has no noise to add."""
    if proposal.model.layout is None:
        return []
    wrong = decided_elsewhere(proposal.training, proposal.statistics, proposal.privacy)
    return [f"This site's own trainer does not follow {', '.join(wrong)}."] if wrong else []


def unsafe_graph(proposal: Proposal, colluding: float) -> list[str]:
    """``colluding``: the share of a round's sites that this site wants withstood."""
    if proposal.sparse is None or proposal.sparse.colluding >= colluding:
        return []
    return [
        f"The run's sparse graph withstands {proposal.sparse.colluding:.0%} colluding sites; this "
        f"site asks for {colluding:.0%} (PRIMIA_COLLUDING_SHARE)."
    ]


def _uncovered(proposal: Proposal) -> list[str]:
    """Central privacy covers the opened sums alone, so nothing exact may come with them."""
    if proposal.privacy.central is None:
        return []
    found = []
    if not proposal.secure:
        found.append("Central privacy without secure aggregation adds no noise.")
    if proposal.statistics.wanted:
        found.append("Statistics are exact sums, which central privacy does not cover.")
    return found
