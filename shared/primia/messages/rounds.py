"""Federated training: what the model owner and the data nodes say to each other.

A node learns what to do by ``GET /node/work`` (a long poll): the answer is the one work item that
the owner waits for, the same item again until it has been answered. Every answer is a PUT,
idempotent: the same body again is accepted, another body for an answered item is a 409
``unexpected-message``.

    item         the node's answer
    review       PUT /rounds/{run}/decision
    measure      PUT /rounds/{run}/{round}/measured           (before the first training round)
    train        GET /rounds/{run}/{round}/weights, then PUT /rounds/{run}/{round}/report
    share_keys   PUT /rounds/{run}/{round}/envelopes          (secure aggregation only)
    upload       PUT /rounds/{run}/{round}/update              (binary, aggregation.wire)
    confirm      PUT /rounds/{run}/{round}/confirmation       (secure aggregation only)
    unmask       PUT /rounds/{run}/{round}/shares             (secure aggregation only)
    evaluate     GET /rounds/{run}/{round}/weights, GET /rounds/{run}/models/{name} for each other
                 model, then PUT /rounds/{run}/{round}/evaluated where figures are summed,
                 PUT /rounds/{run}/evaluation where they are not
    stop         PUT /rounds/{run}/acknowledgement            (run ended, cancelled or failed)
    any          PUT /rounds/{run}/failure                    (this site cannot go on)

Weights of round r (1-based) are the global model that round r starts from; the final model has
the number after the last round. A number is never asked for twice with other keys: a round that
too few nodes could finish is abandoned and tried again, from the same weights, under the next one.
A round that begins with ``measure`` sums integers (the sites' statistics) instead of changes and is
always secure; what it opened comes with every later ``train`` and ``evaluate``.

Figures (losses, accuracies, counts of predictions) of sites that show none of their own travel
under the same masks: beside the update in a round that trains, and in a last round, which begins
with ``evaluate`` and sums integers alone. ``summed`` names the sites that add theirs, all of which
have said so in review; every signature of the round covers it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, JsonValue, TypeAdapter, model_validator

from primia.aggregation.terms import MAX_NODES, MIN_NODES, Assumed, least_threshold
from primia.errors import InvalidInput
from primia.evaluation.counts import Counts
from primia.learning.accounting import without_account
from primia.learning.config import ServerOptimiser, Stopping, TrainingConfig
from primia.learning.programs.document import Program
from primia.learning.programs.shapes import check
from primia.learning.statistics import Statistics
from primia.messages.common import Base64Url, Digest, Id, Label, Message, ModelCard, Name
from primia.messages.privacy import PrivacySettings, StatisticsSettings

MAX_ROUNDS = 10_000
MAX_COMPARED = 20
Selection = Literal["last", "best_loss", "best_accuracy"]


class TrainingSettings(TrainingConfig):
    """How each site trains in each round, and on what part of its images."""

    image_size: int = Field(default=64, ge=16, le=512)
    validation_fraction: float = Field(
        default=0.2, ge=0, le=0.5, description="of each site's patients, for stopping and selection"
    )
    test_fraction: float = Field(
        default=0.0, ge=0, le=0.5, description="held out first, for the final evaluation alone"
    )
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _watched(self) -> TrainingSettings:
        if self.local_stopping is not None and self.validation_fraction == 0:
            raise ValueError("local stopping needs validation images: validation_fraction is 0")
        return self


def contributes_nothing(training: TrainingSettings, privacy: PrivacySettings) -> bool:
    """Whether a stopped site adds exact zeros to later sums. Known zeros do not count towards the
    threshold: with all but one of them the sum is that one's update. Noise in the sum covers it."""
    rule = training.local_stopping
    return rule is not None and rule.when_stopped == "contribute" and privacy.central is None


class SparseGraph(Message):
    """What a round must withstand in which a site masks with some neighbours only
    (primia.aggregation.graph): shares of its sites, rounded up."""

    colluding: float = Field(
        default=0.1, ge=0, le=0.5, description="share of a round's sites that tell the owner all"
    )
    lost: float = Field(
        default=0.1, ge=0, le=0.5, description="share that is lost between two steps of a round"
    )

    def assumed(self, sites: int) -> Assumed:
        return Assumed.shares(sites, self.colluding, self.lost)


class AggregationSettings(Message):
    secure: bool = True
    graph: Literal["auto", "complete", "sparse"] = Field(
        default="auto",
        description="who masks with whom: every two sites, or each with its neighbours in a sparse "
        "graph; auto: sparse above 50 sites, where that halves the work at least",
    )
    sparse: SparseGraph = SparseGraph()
    threshold: int | None = Field(
        default=None,
        ge=2,
        le=MAX_NODES,
        description="nodes that must remain for a round to be opened; default: more than half",
    )
    max_norm: float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        description="a site whose change of the parameters has a larger L2 norm is left out of the "
        "round; default: ten times the norm of the weights",
    )
    minimum_nodes: int = Field(
        default=1, ge=1, le=MAX_NODES, description="without secure aggregation"
    )
    sites_per_round: int | None = Field(
        default=None,
        ge=1,
        le=MAX_NODES,
        description="so many sites, drawn by the seed, take part in a round; default: all",
    )


class Timeouts(Message):
    """Seconds that the owner waits in a phase before it goes on without a silent node."""

    review: float = Field(default=86_400, gt=0, le=30 * 86_400)
    train: float = Field(default=3_600, gt=0, le=7 * 86_400)
    exchange: float = Field(
        default=120, gt=0, le=86_400, description="each phase of the aggregation"
    )


class RunRequest(Message):
    """POST /rounds"""

    model: Name
    version: int | None = Field(default=None, ge=1, le=2**31 - 1, description="default: the newest")
    nodes: tuple[Name, ...] = Field(min_length=1, max_length=MAX_NODES)
    rounds: int = Field(ge=0, le=MAX_ROUNDS, description="0: the model is only evaluated")
    repeats: int = Field(
        default=2, ge=0, le=100, description="abandoned rounds that are tried again before it fails"
    )
    training: TrainingSettings = TrainingSettings()
    aggregation: AggregationSettings = AggregationSettings()
    server: ServerOptimiser = ServerOptimiser()
    stopping: Stopping | None = Field(
        default=None,
        description="end the run early: rounds whose model is no better on validation images",
    )
    selection: Selection = Field(
        default="last", description="which round's model becomes the new version"
    )
    keep: bool = Field(default=True, description="the final model becomes a version")
    compare: tuple[Annotated[int, Field(ge=1, le=2**31 - 1)], ...] = Field(
        default=(), max_length=MAX_COMPARED, description="versions that the sites evaluate as well"
    )
    statistics: StatisticsSettings = StatisticsSettings()
    privacy: PrivacySettings = PrivacySettings()
    timeouts: Timeouts = Timeouts()

    @model_validator(mode="after")
    def _nodes(self) -> RunRequest:
        if len(set(self.nodes)) != len(self.nodes):
            raise ValueError("a node is named twice")
        if self.rounds + self.repeats + self.statistics.wanted > MAX_ROUNDS:
            raise ValueError(f"rounds and repeats together are above {MAX_ROUNDS}")
        if self.statistics.wanted and len(self.nodes) < MIN_NODES:
            raise ValueError(
                "statistics are summed securely over at least two nodes: one would show its own"
            )
        if self.statistics.wanted and not self.rounds:
            raise ValueError("statistics are measured before training: give a round or more")
        if self.statistics.class_weights and self.training.class_weights is not None:
            raise ValueError("give class weights, or let them be measured, not both")
        self._check_central()
        if contributes_nothing(self.training, self.privacy) and self.aggregation.secure:
            raise ValueError(
                "a stopped site's zeros would uncover the other sites' updates in a secure sum: "
                "local_stopping.when_stopped is leave there"
            )
        if self.privacy.dp_sgd is not None:
            wrong = without_account(self.training)
            if wrong:
                raise ValueError(f"dp_sgd goes without training.{', training.'.join(wrong)}")
        if self.aggregation.secure and len(self.nodes) < 2:
            raise ValueError("secure aggregation needs at least two nodes")
        if self.training.validation_fraction == 0 and (self.stopping or self.selection != "last"):
            raise ValueError("stopping and selection need validation images: the fraction is 0")
        if len(set(self.compare)) != len(self.compare):
            raise ValueError("a version to compare with is named twice")
        self._check_threshold()
        return self

    def _check_central(self) -> None:
        """The sums that it protects are all that the owner may learn of a site's images."""
        if self.privacy.central is None:
            return
        if not self.aggregation.secure:
            raise ValueError("central privacy adds its noise under masks: aggregate securely")
        if self.statistics.wanted:
            raise ValueError("statistics are exact sums: central privacy goes without them")
        if self.stopping is not None or self.selection != "last":
            raise ValueError(
                "stopping and selection go by each site's scores: central privacy has none"
            )

    def _check_threshold(self) -> None:
        wanted, threshold = self.aggregation.sites_per_round, self.aggregation.threshold
        if wanted is not None and wanted > len(self.nodes):
            raise ValueError(f"sites_per_round is {wanted}, but only {len(self.nodes)} are named")
        if self.aggregation.secure and wanted == 1:
            raise ValueError("secure aggregation needs at least two sites a round")
        sites = len(self.nodes) if wanted is None else wanted
        if self.aggregation.secure and threshold is not None and threshold > sites:
            raise ValueError(f"the threshold {threshold} is above the number of nodes {sites}")


# What a site's own trainer is told.
_TOLD = frozenset({"image_size", "epochs", "seed"})


def decided_elsewhere(
    training: TrainingSettings, statistics: StatisticsSettings, privacy: PrivacySettings
) -> list[str]:
    """Settings of a run that an external model's trainer, the site's own, would not follow."""
    usual = TrainingSettings(**{name: getattr(training, name) for name in _TOLD})
    fields = [name for name in TrainingSettings.model_fields if name not in _TOLD]
    known = (usual, usual.resolved())  # what a request leaves out, a proposal says
    found = [
        f"training.{n}"
        for n in fields
        if getattr(training, n) not in [getattr(k, n) for k in known]
    ]
    if statistics.wanted:
        found.append("statistics")
    if privacy != PrivacySettings():
        found.append("privacy")
    return found


def check_external(request: RunRequest) -> None:
    """Raises InvalidInput for settings that an external model's run would not follow."""
    found = decided_elsewhere(request.training, request.statistics, request.privacy)
    if request.stopping is not None:
        found.append("stopping")
    if request.selection != "last":
        found.append("selection")
    if found:
        raise InvalidInput(
            f"The sites train this model by code of their own, which does not follow "
            f"{', '.join(found)}.",
            hint="Leave these at their defaults.",
        )


def unfit_for_masks(
    training: TrainingSettings, statistics: StatisticsSettings, privacy: PrivacySettings
) -> list[str]:
    """Why a model for segmentation cannot be trained with these settings; empty: it can."""
    found = training.unfit_for_masks()
    if statistics.wanted:
        found.append("statistics count images by class; a mask has a class for each pixel")
    if privacy.dp_sgd is not None or privacy.central is not None:
        found.append("differential privacy is accounted for and tried with classification alone")
    return found


def check_masks(request: RunRequest) -> None:
    """Raises InvalidInput for settings that a model for segmentation cannot be trained with."""
    found = unfit_for_masks(request.training, request.statistics, request.privacy)
    if found:
        raise InvalidInput(
            f"Segmentation: {'; '.join(found)}.", hint="Leave these settings at their defaults."
        )


class NodeCard(Message):
    """A participant: its name and its Ed25519 identity key."""

    name: Name
    public_key: Base64Url


class Proposal(Message):
    """What a node is asked to take part in; its digest is what the node approves."""

    run: Id
    owner: Name
    model: ModelCard
    nodes: tuple[NodeCard, ...] = Field(min_length=1, max_length=MAX_NODES)
    rounds: int = Field(ge=0, le=MAX_ROUNDS, description="the highest number that a round may have")
    planned: int = Field(ge=0, le=MAX_ROUNDS, description="rounds that make up the run")
    training: TrainingSettings
    secure: bool
    threshold: int = Field(ge=1, le=MAX_NODES, description="resolved, never null")
    sites_per_round: int | None = Field(default=None, ge=1, le=MAX_NODES)
    others: int = Field(
        default=0, ge=0, le=MAX_COMPARED + 1, description="models evaluated beside the final one"
    )
    statistics: StatisticsSettings = StatisticsSettings()
    privacy: PrivacySettings = PrivacySettings()
    sparse: SparseGraph | None = Field(
        default=None, description="of the graph of a round; null: every two sites mask together"
    )
    max_norm: float | None = Field(default=None, gt=0, le=1e9)
    timeouts: Timeouts
    program: Program | None = Field(
        default=None, description="of a model of the owner's own: layers and steps, no code"
    )

    @model_validator(mode="after")
    def _program(self) -> Proposal:
        """What a site approves is the hash; it is computed anew from what is said here."""
        if (self.program.digest if self.program else None) != self.model.program:
            raise ValueError("the program is not the one whose hash the model's card gives")
        if self.program is not None:
            check(self.program)
        return self

    @property
    def sums_figures(self) -> bool:
        """Whether sites may add figures to the run's sums. Central privacy covers no exact sums."""
        return self.secure and self.privacy.central is None

    @property
    def measuring_threshold(self) -> int:
        """Of a round that sums statistics or evaluations: over all sites, and secure also where the
        run is not."""
        if self.secure and self.sites_per_round is None:
            return self.threshold
        return least_threshold(len(self.nodes), self.assumed(measuring=True))

    def assumed(self, *, measuring: bool = False) -> Assumed | None:
        """What the graph of a round is made for: of those that train, or of one over all sites."""
        if self.sparse is None:
            return None
        everybody = len(self.nodes)
        sites = everybody if measuring else self.sites_per_round or everybody
        return self.sparse.assumed(sites)


def round_terms(
    proposal: Proposal,
    weights_digest: str,
    statistics: Statistics | None = None,
    agreed: Mapping[str, JsonValue] | None = None,
) -> bytes:
    """32 bytes that every signature of a secure round covers: the whole proposal, and the digest of
    the weights that the round starts from (none where it measures), the statistics it uses, and
    what else its sites must agree on, if anything.

    An owner that gave one site another model or other settings than the rest could make the others'
    updates vanish and read that site's from the sum (Pasquini et al., Eluding Secure Aggregation in
    Federated Learning via Model Inconsistency, CCS 2022). Sites that differ refuse the signatures.
    """
    document = json.dumps(proposal.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    known = "" if statistics is None else statistics.model_dump_json()
    text = f"primia/rounds/terms/2\0{weights_digest}\0{known}\0{document}"
    if agreed:
        text += "\0" + json.dumps(agreed, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


class _Item(Message):
    run: Id


class _RoundItem(_Item):
    round: int = Field(ge=1, le=MAX_ROUNDS + 1)


class Review(_Item):
    kind: Literal["review"] = "review"
    proposal: Proposal


class Measure(_RoundItem):
    """Statistics of the site's training images, to be summed securely."""

    kind: Literal["measure"] = "measure"


Least = Annotated[int, Field(ge=MIN_NODES, le=MAX_NODES)]
Summed = Annotated[dict[Name, Least], Field(max_length=MAX_NODES)]
"""Site -> the least number of sites among which its figures must be in any sum that is opened."""


class Train(_RoundItem):
    """``done``: rounds whose result is in the weights; schedules go by it. ``statistics``: of all
    sites, where the run has them measured. ``summed``: whose losses and accuracies are added up.
    ``uncounted``: earlier rounds in which this site has trained and whose weights are without it,
    so that what it kept of them (optimiser_state, local_stopping) does not go on."""

    kind: Literal["train"] = "train"
    done: int = Field(default=0, ge=0, le=MAX_ROUNDS)
    weights_digest: Digest
    weights_bytes: int = Field(ge=1, le=2**34)
    statistics: Statistics | None = None
    summed: Summed = Field(default={})
    uncounted: tuple[Annotated[int, Field(ge=1, le=MAX_ROUNDS)], ...] = Field(
        default=(), max_length=MAX_ROUNDS
    )


class ShareKeys(_RoundItem):
    """``roster``: the advertisements (primia.aggregation.keys, base64url) of all who trained."""

    kind: Literal["share_keys"] = "share_keys"
    roster: dict[Name, Base64Url] = Field(max_length=MAX_NODES)


class Upload(_RoundItem):
    """Weights of the mean are samples / sum(samples). Envelopes and exponents only when secure."""

    kind: Literal["upload"] = "upload"
    samples: dict[Name, int] = Field(max_length=MAX_NODES)
    envelopes: dict[Name, Base64Url] = Field(default={}, max_length=MAX_NODES)
    exponents: dict[Literal["parameters", "buffers"], int] = Field(default={}, max_length=2)


class Confirm(_RoundItem):
    """``members``: who has shared keys; null where the site has heard from all of them."""

    kind: Literal["confirm"] = "confirm"
    members: tuple[Name, ...] | None = Field(default=None, max_length=MAX_NODES)
    survivors: tuple[Name, ...] = Field(max_length=MAX_NODES)


class Unmask(_RoundItem):
    kind: Literal["unmask"] = "unmask"
    members: tuple[Name, ...] | None = Field(default=None, max_length=MAX_NODES)
    survivors: tuple[Name, ...] = Field(max_length=MAX_NODES)
    confirmations: dict[Name, Base64Url] = Field(max_length=MAX_NODES)


class Candidate(Message):
    """A model to evaluate beside the final one: GET /rounds/{run}/models/{name}."""

    name: Name
    weights_digest: Digest
    weights_bytes: int = Field(ge=1, le=2**34)


class Evaluate(_RoundItem):
    """``summed``: whose scores are added up, ``counted``, ``tested``: whose counts of predictions
    on validation and on test images as well; none where nothing is, and then the answer is no
    round's."""

    kind: Literal["evaluate"] = "evaluate"
    weights_digest: Digest
    weights_bytes: int = Field(ge=1, le=2**34)
    others: tuple[Candidate, ...] = Field(default=(), max_length=MAX_COMPARED + 1)
    statistics: Statistics | None = None
    summed: Summed = Field(default={})
    counted: Summed = Field(default={})
    tested: Summed = Field(default={})

    @property
    def models(self) -> int:
        return 1 + len(self.others)


class Stop(_Item):
    kind: Literal["stop"] = "stop"
    state: Literal["finished", "cancelled", "failed"]
    reason: str = Field(default="", max_length=2000)


WorkItem = Annotated[
    Review | Measure | Train | ShareKeys | Upload | Confirm | Unmask | Evaluate | Stop,
    Field(discriminator="kind"),
]
WORK_ITEM: TypeAdapter[WorkItem] = TypeAdapter(WorkItem)


Beginning = Train | Measure | Evaluate


def terms_of(proposal: Proposal, item: Beginning) -> bytes:
    """``round_terms`` of the round that begins with this item, the same item at all its sites."""
    if isinstance(item, Measure):
        return round_terms(proposal, "")
    agreed: dict[str, JsonValue] = {}
    if item.summed:
        agreed["summed"] = dict(item.summed)
    if isinstance(item, Evaluate):
        agreed["counted"], agreed["tested"] = dict(item.counted), dict(item.tested)
        agreed["others"] = {each.name: each.weights_digest for each in item.others}
    return round_terms(proposal, item.weights_digest, item.statistics, agreed)


class Decision(Message):
    """``samples`` and ``classes`` of the data set that the node will train on (if accepted).
    ``summed``, ``counted``, ``tested``: the site adds its scores, and its counts of predictions on
    validation and on test images, to sums in which at least so many sites' are, and shows none of
    its own; null: it adds none."""

    accepted: bool
    reason: str = Field(default="", max_length=2000)
    samples: int = Field(default=0, ge=0, le=2**31)
    classes: tuple[Label, ...] = Field(default=(), max_length=1000)
    summed: int | None = Field(default=None, ge=MIN_NODES, le=MAX_NODES)
    counted: int | None = Field(default=None, ge=MIN_NODES, le=MAX_NODES)
    tested: int | None = Field(default=None, ge=MIN_NODES, le=MAX_NODES)


class Scores(Message):
    """Loss and accuracy of one model on one site's images."""

    samples: int = Field(ge=0, le=2**31)
    loss: float | None = None
    accuracy: float | None = Field(default=None, ge=0, le=1)


class TrainReport(Message):
    """After local training. ``received``: the round's incoming global model on the site's
    validation images. ``exponents``: ceil(log2) of the largest change in each group; the
    advertisement carries the site's keys for this round (both only when secure)."""

    samples: int = Field(ge=1, le=2**31)
    loss: float | None = None
    accuracy: float | None = Field(default=None, ge=0, le=1)
    seconds: float = Field(ge=0)
    received: Scores | None = None
    stopped: bool = Field(default=False, description="early stopping has ended training here")
    exponents: dict[Literal["parameters", "buffers"], int] = Field(default={}, max_length=2)
    advertisement: Base64Url | None = None


class MeasureReport(Message):
    """A site has measured its images and is ready to sum: its keys for this round."""

    advertisement: Base64Url


class Envelopes(Message):
    """Recipient -> sealed shares of this node's keys (aggregation.envelopes)."""

    envelopes: dict[Name, Base64Url] = Field(max_length=MAX_NODES)


class Confirmation(Message):
    signature: Base64Url


class Shares(Message):
    """``reveal``: aggregation.client's answer to Unmask, base64url."""

    reveal: Annotated[str, Field(max_length=65_536, pattern=r"^[A-Za-z0-9_-]*$")]


class ModelEvaluation(Message):
    """One model on the site's validation images; and, as counts that add up over sites, on those
    and on its test images, where it has such."""

    scores: Scores
    validation: Counts | None = None
    test: Counts | None = None


class Evaluation(ModelEvaluation):
    """The final model; ``others``: the other models asked for, by name."""

    others: dict[Name, ModelEvaluation] = Field(default={}, max_length=MAX_COMPARED + 1)


class EvaluationReport(Message):
    """A site has evaluated and is ready to sum: what it shows of its own, and its keys for this
    round."""

    evaluation: Evaluation
    advertisement: Base64Url


class Failure(Message):
    """Why this site cannot go on: the code and detail of a problem document, nothing more."""

    code: Name
    detail: str = Field(max_length=2000)
    round: int | None = Field(
        default=None, ge=1, le=MAX_ROUNDS + 1, description="default: the present one"
    )
