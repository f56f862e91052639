"""Rules of a data node's encrypted inferences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from primia.errors import Conflict, MalformedMessage, NotFound
from primia.messages.inference import Accuracy, Prediction, Result, ServedModel, ServedPlan

# Every attempt takes a new deal: what broke is burned.
MAX_ATTEMPTS = 4
PHASES = ("material", "offline", "online")


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = (State.DONE, State.FAILED, State.CANCELLED)
TRANSITIONS = MappingProxyType(
    {
        State.QUEUED: frozenset({State.RUNNING, State.CANCELLED, State.FAILED}),
        State.RUNNING: frozenset({State.DONE, State.FAILED, State.CANCELLED}),
        State.DONE: frozenset(),
        State.FAILED: frozenset(),
        State.CANCELLED: frozenset(),
    }
)


def move(present: State, wanted: State) -> State:
    if wanted not in TRANSITIONS[present]:
        raise Conflict(f"An inference that is {present} cannot become {wanted}.")
    return wanted


def retry_seconds(attempts: int) -> float:
    """The pause before the next attempt: 1, 3, 9, 27 seconds, so that all of them together outlast
    the restart of a service."""
    return float(3 ** min(max(attempts - 1, 0), 3))


def choose(
    models: Iterable[ServedModel],
    name: str,
    version: int | None,
    result: Result,
    accuracy: Accuracy = "exact",
) -> tuple[ServedModel, ServedPlan]:
    """The model as asked for, the newest version where none is; raises NotFound naming what is."""
    named = [model for model in models if model.card.name == name]
    if not named:
        raise NotFound(f"The model owner serves no model {name}.", hint="Ask for what is served.")
    fitting = [model for model in named if version in (None, model.card.version)]
    for model in sorted(fitting, key=lambda found: -found.card.version):
        for plan in model.plans:
            if (plan.result, plan.accuracy) == (result, accuracy):
                return model, plan
    offered = ", ".join(
        sorted(
            f"version {m.card.version} ({plan.result}, {plan.accuracy})"
            for m in named
            for plan in m.plans
        )
    )
    wanted = "" if version is None else f"version {version} of "
    raise NotFound(
        f"{wanted}{name} is not served with the result {result}, {accuracy}; served: {offered}."
    )


def admissible(model: ServedModel, plan: ServedPlan) -> tuple[ServedPlan, ...]:
    """The plans of this version that answer who asked for ``plan``: itself, and the exact one."""
    fitting = [each for each in model.plans if each.result == plan.result]
    return tuple(each for each in fitting if each == plan or each.accuracy == "exact")


def predictions(
    values: NDArray[np.float64] | NDArray[np.int64],
    result: Result,
    images: Sequence[str],
    classes: Sequence[str],
) -> tuple[Prediction, ...]:
    """``values``: scores (N, classes) or labels (N,), in the order of the images."""
    expected = (len(images),) if result == "label" else (len(images), len(classes))
    if values.shape != expected:
        raise MalformedMessage(f"The result has the shape {values.shape}, not {expected}.")
    if result == "label":
        return tuple(
            Prediction(image=name, label=classes[int(value)])
            for name, value in zip(images, values, strict=True)
        )
    return tuple(
        Prediction(
            image=name,
            label=classes[int(np.argmax(row))],
            scores={label: float(score) for label, score in zip(classes, row, strict=True)},
        )
        for name, row in zip(images, values, strict=True)
    )
