"""What the model owner tells its users about training runs."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field, JsonValue

from primia.evaluation.figures import Figures
from primia.learning.spec import Task, task_of
from primia.learning.statistics import Statistics
from primia.messages.common import Id, Message, ModelCard, Name
from primia.messages.rounds import Proposal, RunRequest, Scores

RunState = Literal["reviewing", "running", "evaluating", "finished", "failed", "cancelled"]
ENDED: frozenset[RunState] = frozenset({"finished", "failed", "cancelled"})


class SiteInRun(Message):
    """``samples`` as the site stated them in review; ``final``: the final model on its images;
    ``summed``: it shows no figures of its own and adds them to the run's."""

    node: Name
    state: Literal["invited", "accepted", "refused", "silent"]
    reason: str = ""
    samples: int = 0
    summed: bool = False
    final: Scores | None = None


class SiteInRound(Message):
    """``received``: the model that the round started from, on the site's validation images.

    ``bytes_up`` counts the bodies of the site's answers, ``bytes_down`` the weights it was sent.
    """

    node: Name
    stage: Literal["asked", "trained", "shared", "uploaded", "absorbed", "confirmed", "revealed"]
    dropped: str | None = Field(default=None, description="why the site is out of this round")
    samples: int = 0
    loss: float | None = None
    accuracy: float | None = None
    received: Scores | None = None
    seconds: float | None = Field(default=None, description="of local training")
    bytes_up: int = 0
    bytes_down: int = 0


class QuantisationStep(Message):
    """By how much a value of the opened mean may differ from the exact one, in each group."""

    parameters: float
    buffers: float


class RoundGraph(Message):
    """Who masked with whom in a round, as it follows from the sites that advertised keys."""

    sites: int = Field(description="that advertised their keys")
    neighbours: int = Field(description="k: that each site masks with")
    share_threshold: int = Field(description="τ: shares that give a lost site's secret")

    def __str__(self) -> str:
        return f"k = {self.neighbours}, τ = {self.share_threshold}"


class RoundReport(Message):
    """Means over sites are weighted by samples; ``result``: the model that the round made."""

    number: int
    purpose: Literal["train", "measure", "evaluate"] = "train"
    phase: str
    reason: str = ""
    started: datetime
    ended: datetime | None = None
    training: Scores
    received: Scores
    result: Scores | None = None
    quantisation_step: QuantisationStep | None = Field(
        default=None, description="of the sum that a secure round has opened"
    )
    graph: RoundGraph | None = Field(
        default=None,
        description="in a run with a sparse graph, once all keys of the round are advertised",
    )
    sites: tuple[SiteInRound, ...] = ()


class RunSummary(Message):
    id: Id
    state: RunState
    reason: str = ""
    model: Name
    version: int = Field(description="the version that the run starts from")
    final_version: int | None = Field(default=None, description="the version that it made")
    nodes: tuple[Name, ...]
    rounds: int
    rounds_done: int
    secure: bool
    threshold: int = Field(description="nodes that must remain for a round to be opened")
    created: datetime
    created_by: Name
    ended: datetime | None = None


class RunReport(RunSummary):
    """``proposal``: all that the sites were asked to approve, with what the request left open."""

    request: RunRequest
    proposal: Proposal
    client_epsilon: float | None = Field(
        default=None,
        description="with central privacy: ε of the opened sums alone, for each site, over the "
        "rounds so far",
    )
    statistics: Statistics | None = Field(
        default=None, description="of all sites' training images, where the run measured them"
    )
    sites: tuple[SiteInRun, ...]
    final: Scores | None = None
    reports: tuple[RoundReport, ...] = ()
    evaluations: tuple[RoundReport, ...] = Field(
        default=(), description="the rounds in which the sites' evaluations were summed"
    )

    @property
    def step(self) -> QuantisationStep | None:
        """The largest of its rounds."""
        found = [each.quantisation_step for each in self.reports if each.quantisation_step]
        if not found:
            return None
        return QuantisationStep(
            parameters=max(each.parameters for each in found),
            buffers=max(each.buffers for each in found),
        )

    def findings(self) -> list[tuple[str, str]]:
        """What was measured beside scores, in words: who is not in it, privacy, exactness, the
        sites' images."""
        found = []
        absent = [each for each in self.absent if each not in self.reason]
        if absent:
            found.append(("Without", "; ".join(absent)))
        if self.step is not None:
            step = f"{self.step.parameters:.1g} a parameter, {self.step.buffers:.1g} a buffer value"
            found.append(("Error of the opened means", f"at most {step}"))
        central = self.proposal.privacy.central
        if central is not None and self.client_epsilon is not None:
            epsilon = f"ε = {self.client_epsilon:.3g}, δ = {central.delta:g}"
            found.append(("Privacy of each site", f"{epsilon}, of the opened sums"))
        if self.statistics is not None:
            found.append(("Training images", _images(self.statistics, self.proposal.model)))
        return found

    @property
    def absent(self) -> list[str]:
        """The sites that were asked and do not take part, each with why."""
        found = []
        for site in self.sites:
            if site.state == "refused":
                found.append(f"{site.node} refused ({site.reason or 'no reason given'})")
            elif site.state == "silent":
                found.append(f"{site.node} did not answer in time")
        return found

    @property
    def task(self) -> Task:
        return task_of(self.proposal.model.architecture)

    @property
    def accuracy_is(self) -> str:
        """What the figure named accuracy is of this run's model."""
        return "mean Dice" if self.task == "segmentation" else "accuracy"


def _images(found: Statistics, card: ModelCard) -> str:
    counts = ", ".join(
        f"{count} {label}" for label, count in zip(card.classes, found.counts, strict=True)
    )
    mean, deviation = (
        "/".join(f"{value:.3f}" for value in values) for values in (found.mean, found.deviation)
    )
    size = f"{found.width.mean:.0f} × {found.height.mean:.0f} pixels on average"
    return f"{found.images}: {counts}; mean {mean}, deviation {deviation}; {size}"


class PartFigures(Message):
    """A model on validation images (used for stopping and selection) and on test images (not)."""

    validation: Figures | None = None
    test: Figures | None = None


class ModelFigures(Message):
    """``model``: ``last`` or ``best`` of the run, or ``version-N``; ``overall``: all sites' images
    together."""

    model: Name
    overall: PartFigures
    sites: dict[Name, PartFigures]


class RunDocument(Message):
    """GET /rounds/{run}/report: all that is known of a run, and all that it takes to repeat it
    (``run.request``, with the version that it started from)."""

    run: RunReport
    card: ModelCard
    chosen: Name = Field(description="the model that became the final version")
    models: tuple[ModelFigures, ...]
    software: dict[str, str]


class RunPage(Message):
    """Newest first; ``next`` is the ``before`` of the next page, null on the last."""

    runs: tuple[RunSummary, ...]
    next: Id | None = None


class RunEvent(Message):
    id: int
    at: datetime
    kind: str
    round: int | None = None
    node: Name | None = None
    detail: dict[str, JsonValue] = Field(default={})
