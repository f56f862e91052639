"""Search for hyperparameters over a federation: every trial is a training run of its own."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue, StringConstraints, model_validator

from primia.messages.common import Id, Message, Name
from primia.messages.rounds import RunRequest

MAX_TRIALS = 1000
# A field of the run's request: training.schedule.warm_up
FieldPath = Annotated[str, StringConstraints(pattern=r"^[a-z_]+(?:\.[a-z_]+){0,3}$")]
StudyState = Literal["running", "finished", "failed", "cancelled"]
TrialState = Literal["running", "complete", "pruned", "failed"]


class FloatRange(Message):
    kind: Literal["float"] = "float"
    low: float
    high: float
    log: bool = Field(default=False, description="drawn by the logarithm")

    @model_validator(mode="after")
    def _ordered(self) -> FloatRange:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError("low is below high, and above 0 on a logarithmic scale")
        return self


class IntRange(Message):
    kind: Literal["int"] = "int"
    low: int = Field(ge=-(2**31), le=2**31)
    high: int = Field(ge=-(2**31), le=2**31)
    step: int = Field(default=1, ge=1, le=2**31)

    @model_validator(mode="after")
    def _ordered(self) -> IntRange:
        if self.low >= self.high:
            raise ValueError("low is below high")
        return self


def value_text(value: JsonValue) -> str:
    return json.dumps(value, sort_keys=True)


class Choice(Message):
    """Of values of any kind: numbers and texts, null, lists (``training.class_weights``), and whole
    groups of settings, which go together (``server`` as plain averaging, or as FedAdam at a rate).
    """

    kind: Literal["choice"] = "choice"
    values: tuple[JsonValue, ...] = Field(min_length=2, max_length=100)

    @model_validator(mode="after")
    def _different(self) -> Choice:
        if len(set(self.texts)) != len(self.values):
            raise ValueError("a value stands there twice")
        return self

    @property
    def texts(self) -> list[str]:
        """Of each value, the same for equal ones."""
        return [value_text(value) for value in self.values]


Parameter = Annotated[FloatRange | IntRange | Choice, Field(discriminator="kind")]


class Pruning(Message):
    """A trial ends between rounds when its model is worse on validation images than what earlier
    trials had after as many rounds."""

    kind: Literal["none", "median", "percentile"] = "median"
    percentile: float = Field(default=25.0, gt=0, lt=100, description="the share that goes on")
    startup_trials: int = Field(default=4, ge=1, le=100, description="trials that are not pruned")
    warmup_rounds: int = Field(default=1, ge=0, le=1000, description="rounds that are not judged")


class StudyRequest(Message):
    """POST /studies: ``run`` with some of its fields drawn anew for each trial."""

    run: RunRequest
    parameters: dict[FieldPath, Parameter] = Field(
        min_length=1,
        max_length=30,
        description="any of the run's fields but nodes and keep; a choice of models: each trial "
        "starts from its model's newest version",
    )
    trials: int = Field(ge=1, le=MAX_TRIALS)
    objective: Literal["loss", "accuracy"] = Field(
        default="loss", description="of a trial's final model, on all sites' validation images"
    )
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    pruning: Pruning = Pruning()
    groups: tuple[tuple[Name, ...], ...] = Field(
        default=(),
        max_length=20,
        description="sites of trials that run side by side; default: one trial at a time, "
        "at the run's nodes",
    )
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _groups(self) -> StudyRequest:
        named = [node for group in self.groups for node in group]
        if len(set(named)) != len(named):
            raise ValueError("a node is in two groups: it takes part in one run at once")
        self._check_parameters()
        because = without_value(self.run, drawn=frozenset(self.parameters))
        if because:
            raise ValueError(because)
        if self.sampler == "grid":
            for path, each in self.parameters.items():
                if each.kind == "float":
                    raise ValueError(f"{path}: a grid takes whole numbers or choices")
        return self

    def _check_parameters(self) -> None:
        if "keep" in self.parameters:
            raise ValueError("keep: the models of trials are not kept")
        if "nodes" in self.parameters:
            raise ValueError("nodes: a trial is at the run's nodes, or at one of the groups")
        for path in self.parameters:
            for group in self.parameters:
                if path.startswith(f"{group}."):
                    raise ValueError(f"{path} is drawn twice: by itself and with {group}")
        models = self.parameters.get("model")
        if models is None:
            return
        if models.kind != "choice":
            raise ValueError("model: give a choice of models' names")
        if self.run.version is not None or "version" in self.parameters:
            raise ValueError("version: trials of several models start from each one's newest")


def without_value(run: RunRequest, drawn: frozenset[str] = frozenset()) -> str:
    """Why a trial with this run could not be judged by its final model; empty if it can be.

    ``drawn``: fields that each trial has a value of its own for.
    """
    if run.rounds < 1 and "rounds" not in drawn:
        return "a trial trains for at least one round"
    if run.privacy.central is not None:
        return "no score leaves a site with central privacy, so that no trial would have a value"
    if run.training.validation_fraction == 0 and "training.validation_fraction" not in drawn:
        return "trials are judged by validation images: the fraction is 0"
    return ""


class MoreTrials(Message):
    """POST /studies/{id}/trials: go on with a study that has ended, or with more trials."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"trials": 20}]})

    trials: int = Field(ge=1, le=MAX_TRIALS)


class TrialReport(Message):
    """``reports``: the objective's measure after so many rounds."""

    number: int
    state: TrialState
    run: Id | None = None
    parameters: dict[str, JsonValue]
    value: float | None = None
    reports: dict[int, float] = Field(default={})
    reason: str = ""


class StudySummary(Message):
    """``reason``: why it has ended, or what its next trials wait for."""

    id: Id
    state: StudyState
    reason: str = ""
    model: Name
    trials: int
    done: int
    best: TrialReport | None = None
    created: datetime
    created_by: Name
    ended: datetime | None = None


class StudyReport(StudySummary):
    request: StudyRequest
    reports: tuple[TrialReport, ...]
    importance: dict[str, float] = Field(
        default={}, description="share of the value's variance; empty before a few are complete"
    )


class StudyList(Message):
    studies: tuple[StudySummary, ...]
