"""The rules of a training run: transition tables and what follows from them; no I/O, no clock.

A run is reviewed by its nodes, goes through rounds, is evaluated and ends. A round goes through the
phases of federated averaging, plain (McMahan et al., 2017) or with secure aggregation (Bonawitz et
al., CCS 2017, figure 4); each phase takes its members from one stage to the next. Who is silent
when a phase's time is up, or reports a failure, drops out of this round and is asked again in the
next one. Numbers are never used twice: a round that too few could finish is abandoned, and the
next number starts from the same weights, so that no node ever masks twice with the same keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from primia.aggregation.graph import degree
from primia.aggregation.terms import check_threshold, least_threshold
from primia.errors import Conflict, InvalidInput
from primia.messages.rounds import AggregationSettings, SparseGraph

COMPLETE_UP_TO = 50  # sites that mask with all others unless a sparse graph is asked for

RunState = Literal["reviewing", "running", "evaluating", "finished", "failed", "cancelled"]
Phase = Literal[
    "training",
    "sharing",
    "uploading",
    "absorbing",
    "confirming",
    "unmasking",
    "opening",
    "done",
    "abandoned",
]
SiteState = Literal["invited", "accepted", "refused", "silent"]
Purpose = Literal["train", "measure", "evaluate"]
Kind = Literal[
    "review", "measure", "train", "share_keys", "upload", "confirm", "unmask", "evaluate", "stop"
]

RUN_TRANSITIONS: Mapping[RunState, frozenset[RunState]] = {
    "reviewing": frozenset({"running", "evaluating", "failed", "cancelled"}),
    "running": frozenset({"evaluating", "failed", "cancelled"}),
    "evaluating": frozenset({"finished", "failed", "cancelled"}),
    "finished": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
ENDED: frozenset[RunState] = frozenset(s for s, after in RUN_TRANSITIONS.items() if not after)
ACTIVE: frozenset[RunState] = frozenset(RUN_TRANSITIONS) - ENDED

SITE_TRANSITIONS: Mapping[SiteState, frozenset[SiteState]] = {
    "invited": frozenset({"accepted", "refused", "silent"}),
    "accepted": frozenset(),
    "refused": frozenset(),
    "silent": frozenset(),
}

SECURE_ORDER: tuple[Phase, ...] = (
    "training",
    "sharing",
    "uploading",
    "absorbing",
    "confirming",
    "unmasking",
    "opening",
    "done",
)
PLAIN_ORDER: tuple[Phase, ...] = ("training", "uploading", "absorbing", "opening", "done")
CLOSED: frozenset[Phase] = frozenset({"done", "abandoned"})


class Stage(IntEnum):
    """How far a node has come in a round; it only ever rises."""

    ASKED = 0
    TRAINED = 1
    SHARED = 2
    UPLOADED = 3
    ABSORBED = 4
    CONFIRMED = 5
    REVEALED = 6


@dataclass(frozen=True, slots=True)
class Member:
    """A node in a round. ``dropped`` keeps its stage: what it gave before still counts."""

    node: str
    stage: Stage
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """A phase takes members from one stage to another: nodes by answering an item of this kind
    within a timeout, the owner's worker (no kind, no timeout) by absorbing what came.
    """

    before: Stage
    after: Stage
    kind: Kind | None
    timeout: Literal["train", "exchange"] | None

    def waiting(self, members: Iterable[Member]) -> tuple[str, ...]:
        """Those whose answer may come now; the worker takes what dropped nodes left, too."""
        return tuple(
            sorted(
                member.node
                for member in members
                if member.stage == self.before and (self.kind is None or not member.dropped)
            )
        )


_TRAIN = Step(Stage.ASKED, Stage.TRAINED, "train", "train")
_ABSORB = Step(Stage.UPLOADED, Stage.ABSORBED, None, None)
SECURE_STEPS: Mapping[Phase, Step] = {
    "training": _TRAIN,
    "sharing": Step(Stage.TRAINED, Stage.SHARED, "share_keys", "exchange"),
    "uploading": Step(Stage.SHARED, Stage.UPLOADED, "upload", "exchange"),
    "absorbing": _ABSORB,
    "confirming": Step(Stage.ABSORBED, Stage.CONFIRMED, "confirm", "exchange"),
    "unmasking": Step(Stage.CONFIRMED, Stage.REVEALED, "unmask", "exchange"),
}
PLAIN_STEPS: Mapping[Phase, Step] = {
    "training": _TRAIN,
    "uploading": Step(Stage.TRAINED, Stage.UPLOADED, "upload", "exchange"),
    "absorbing": _ABSORB,
}


def move_run(present: RunState, wanted: RunState) -> RunState:
    if wanted not in RUN_TRANSITIONS[present]:
        raise Conflict(f"A run that is {present} cannot become {wanted}.")
    return wanted


def move_site(present: SiteState, wanted: SiteState) -> SiteState:
    if wanted not in SITE_TRANSITIONS[present]:
        raise Conflict(f"A node that has {present} cannot become {wanted} any more.")
    return wanted


def step_of(phase: Phase, *, secure: bool) -> Step | None:
    """What the phase waits for; None where it waits for the owner's task or for nothing."""
    return (SECURE_STEPS if secure else PLAIN_STEPS).get(phase)


def following(phase: Phase, *, secure: bool) -> Phase:
    order = SECURE_ORDER if secure else PLAIN_ORDER
    if phase not in order[:-1]:
        raise Conflict(f"Nothing follows the phase {phase} of a round.")
    return order[order.index(phase) + 1]


def move_phase(present: Phase, wanted: Phase, *, secure: bool) -> Phase:
    """Forwards by one, or abandoned; nothing leaves a closed round."""
    open_ = present not in CLOSED
    if open_ and (wanted == "abandoned" or wanted == following(present, secure=secure)):
        return wanted
    raise Conflict(f"A round that is {present} cannot become {wanted}.")


def at_least(members: Iterable[Member], stage: Stage) -> tuple[str, ...]:
    return tuple(sorted(member.node for member in members if member.stage >= stage))


@dataclass(frozen=True, slots=True)
class Wait:
    """For answers that may still come."""


@dataclass(frozen=True, slots=True)
class Advance:
    """To the next phase, without those who were silent."""

    silent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Abandon:
    silent: tuple[str, ...]
    reason: str


def settle(
    step: Step, members: Sequence[Member], needed: int, *, expired: bool
) -> Wait | Advance | Abandon:
    """What becomes of a phase: it ends when all have answered or their time is up, and goes on if
    ``needed`` members have come through; it is given up as soon as they cannot any more."""
    late = step.waiting(members) if expired and step.timeout else ()
    left = [member for member in members if member.node not in late]
    ready = sum(member.stage >= step.after for member in left)
    hoped = sum(
        member.stage == step.before and (step.kind is None or not member.dropped) for member in left
    )
    if ready + hoped < needed:
        return Abandon(late, f"only {ready + hoped} of the {needed} nodes needed are left")
    return Wait() if hoped else Advance(late)


def absorbable(members: Iterable[Member], *, secure: bool) -> tuple[str, ...]:
    """Whose waiting updates may be added to the sum now, in this order. A plain sum is of floats
    and depends on its order, so there an update waits for those of all earlier names."""
    ready: list[str] = []
    for member in sorted(members, key=lambda each: each.node):
        if member.stage == Stage.UPLOADED:
            ready.append(member.node)
        elif not secure and member.stage < Stage.UPLOADED and not member.dropped:
            break
    return tuple(ready)


def wanted_kind(run: RunState, site: SiteState, *, answered: bool) -> Kind | None:
    """The one item that the owner waits for from a node outside of rounds, or None.

    ``answered``: the node has answered the question of the run's state: its evaluation while
    evaluating, its acknowledgement once the run has ended.
    """
    if run in ENDED:
        return None if answered or site == "refused" else "stop"
    if run == "reviewing":
        return "review" if site == "invited" else None
    if run == "evaluating" and site == "accepted" and not answered:
        return "evaluate"
    return None


def wanted_in_round(
    phase: Phase,
    node: str,
    members: Iterable[Member],
    *,
    secure: bool,
    purpose: Purpose = "train",
) -> Kind | None:
    """The one item that an open round waits for from a node, or None. A plain round takes the
    update of a site that has trained while others still train."""
    steps = [step_of(phase, secure=secure)]
    if phase == "training" and not secure:
        steps.append(PLAIN_STEPS["uploading"])
    for step in steps:
        if step is not None and node in step.waiting(members):
            return purpose if step.kind == "train" else step.kind
    return None


def stage_after(kind: Kind, phase: Phase, *, secure: bool) -> Stage:
    """Of a node whose answer to this item the phase has waited for."""
    ahead = kind == "upload" and not secure
    step = PLAIN_STEPS["uploading"] if ahead else step_of(phase, secure=secure)
    if step is None:
        raise Conflict(f"A round that is {phase} waits for no answer.")
    return step.after


def drawn(nodes: Sequence[str], sites: int | None, seed: int, number: int) -> tuple[str, ...]:
    """The sites of a round: all, or so many, drawn anew for each number and the same again."""
    if sites is None or sites >= len(nodes):
        return tuple(sorted(nodes))

    def rank(node: str) -> bytes:
        return hashlib.sha256(f"primia/sampling/{seed}/{number}/{node}".encode()).digest()

    return tuple(sorted(sorted(nodes, key=rank)[:sites]))


def resolve_graph(settings: AggregationSettings, nodes: int) -> SparseGraph | None:
    """Of a round of ``nodes``; None: every two sites mask together. Raises InvalidInput."""
    if not settings.secure or settings.graph == "complete":
        return None
    found = degree(nodes, settings.sparse.assumed(nodes))
    if settings.graph == "auto":
        worthwhile = nodes > COMPLETE_UP_TO and found and 2 * found.neighbours <= nodes
        return settings.sparse if worthwhile else None
    if found is None:
        raise InvalidInput(
            f"With {nodes} sites, of which {settings.sparse.colluding:.0%} may collude and "
            f"{settings.sparse.lost:.0%} be lost, a site needs all others as neighbours.",
            hint="Use aggregation.graph=complete, or assume fewer.",
        )
    return settings.sparse


def resolve_threshold(
    nodes: int, settings: AggregationSettings, sparse: SparseGraph | None = None
) -> int:
    """Nodes that must remain in a round of ``nodes``. Raises InvalidInput."""
    if settings.secure:
        assumed = None if sparse is None else sparse.assumed(nodes)
        asked = settings.threshold
        wanted = least_threshold(nodes, assumed) if asked is None else asked
        return check_threshold(wanted, nodes, assumed)
    if settings.minimum_nodes > nodes:
        raise InvalidInput(
            f"minimum_nodes is {settings.minimum_nodes}, but a round has only {nodes} nodes."
        )
    return settings.minimum_nodes
