"""A study's rules: which request a trial makes of its parameters, and when a study is over."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pydantic import JsonValue, ValidationError

from primia.errors import Conflict, InvalidInput
from primia.learning.spec import describe
from primia.messages.rounds import RunRequest
from primia.messages.studies import (
    Parameter,
    StudyRequest,
    StudyState,
    value_text,
    without_value,
)

TRANSITIONS: Mapping[StudyState, frozenset[StudyState]] = {
    "running": frozenset({"finished", "failed", "cancelled"}),
    "finished": frozenset({"running"}),
    "failed": frozenset({"running"}),
    "cancelled": frozenset(),
}
# So many trials that fail, and none that succeeds: the next ones would fail as well.
HOPELESS = 3
# So many trials are tried out, at each group of sites, before a study starts: half a second.
MAX_CORNERS = 256


@dataclass(frozen=True)
class Past:
    """A trial so far; ``reports``: rounds done → measure."""

    state: str
    parameters: Mapping[str, JsonValue]
    value: float | None = None
    reports: Mapping[int, float] = field(default_factory=dict)


def move(present: StudyState, wanted: StudyState) -> StudyState:
    if wanted not in TRANSITIONS[present]:
        raise Conflict(f"A study that is {present} cannot become {wanted}.")
    return wanted


def groups(request: StudyRequest) -> tuple[tuple[str, ...], ...]:
    """The sites of each of the trials that run side by side."""
    return request.groups or (request.run.nodes,)


def trial_run(
    request: StudyRequest,
    parameters: Mapping[str, JsonValue],
    nodes: Sequence[str],
    versions: Mapping[str, int] = MappingProxyType({}),
) -> RunRequest:
    """The run of a trial; ``versions``: model -> the version that its trials start from.

    Raises InvalidInput, which names the fields at fault.
    """
    document: dict[str, Any] = request.run.model_dump(mode="json")
    document["nodes"] = list(nodes)
    document["keep"] = False
    for path, value in parameters.items():
        _put(document, path, value)
    if "version" not in parameters:
        document["version"] = versions.get(document["model"], document["version"])
    try:
        run = RunRequest.model_validate(document)
    except ValidationError as error:
        raise InvalidInput(f"A trial's run: {describe(error)}.") from None
    because = without_value(run)
    if because:
        raise InvalidInput(f"A trial's run: {because}.")
    return run


def models(request: StudyRequest) -> tuple[str, ...]:
    """That trials may be of."""
    parameter = request.parameters.get("model")
    if parameter is None:
        return (request.run.model,)
    return tuple(str(name) for name in bounds(parameter))


def check(request: StudyRequest) -> Iterator[RunRequest]:
    """The runs of the outermost trials at every group of sites, each checked as it comes. Raises
    InvalidInput, which names the values that make no run together."""
    for nodes in groups(request):
        for drawn in corners(request):
            try:
                yield trial_run(request, drawn, nodes)
            except InvalidInput as error:
                named = ", ".join(f"{path} {value_text(value)}" for path, value in drawn.items())
                raise InvalidInput(f"{error.detail} With {named}.", hint=error.hint) from None


def corners(request: StudyRequest) -> Iterator[dict[str, JsonValue]]:
    """Every combination of lowest and highest values and of choices; where these are too many,
    every such value beside the first and beside the last of all others."""
    ends = {path: bounds(each) for path, each in request.parameters.items()}
    if math.prod(len(values) for values in ends.values()) <= MAX_CORNERS:
        for values in itertools.product(*ends.values()):
            yield dict(zip(ends, values, strict=True))
        return
    for place in (0, -1):
        others = {path: values[place] for path, values in ends.items()}
        for path, values in ends.items():
            for value in values:
                yield {**others, path: value}


def bounds(parameter: Parameter) -> tuple[JsonValue, ...]:
    """Its lowest and highest value, or all choices."""
    if parameter.kind == "choice":
        return parameter.values
    return (parameter.low, parameter.high)


def _put(document: dict[str, Any], path: str, value: JsonValue) -> None:
    *folders, name = path.split(".")
    place = document
    for folder in folders:
        inner = place.get(folder)
        if inner is None and folder in place:
            inner = place[folder] = {}
        if not isinstance(inner, dict):
            raise InvalidInput(f"A run has no group of settings {folder!r} ({path}).")
        place = inner
    place[name] = value


def is_hopeless(states: Sequence[str], continued: int = 0) -> bool:
    """``continued``: trials there were when somebody had the study go on, with a fresh chance."""
    ended = [state for state in states if state != "running"]
    fresh = [state for state in states[continued:] if state != "running"]
    return len(fresh) >= HOPELESS and all(state == "failed" for state in ended)
