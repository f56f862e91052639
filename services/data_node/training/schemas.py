"""What the node's own house says and hears about training runs."""

from __future__ import annotations

from datetime import datetime

from pydantic import ConfigDict, Field, JsonValue

from primia.messages.common import Id, Message, ModelCard, Name
from primia.messages.privacy import PrivacySettings, StatisticsSettings
from primia.messages.rounds import Proposal, Scores, TrainingSettings
from services.data_node.training.domain import Phase, RunState
from services.data_node.training.tables import Round, Run

_EXAMPLE: dict[str, JsonValue] = {
    "id": "0f" * 16,
    "owner": "model-owner",
    "model": "chest",
    "state": "active",
    "reason": "",
    "dataset": "chest-2024",
    "rounds": 10,
    "rounds_done": 1,
    "created": "2026-05-04T08:00:00Z",
    "ended": None,
}
_WHOLE_EXAMPLE: dict[str, JsonValue] = {
    **_EXAMPLE,
    "model_card": {
        "name": "chest",
        "version": 1,
        "architecture": "resnet18",
        "classes": ["bacterial", "normal", "viral"],
        "channels": 1,
        "image_size": 64,
        "mean": 0.5,
        "deviation": 0.25,
        "digest": "0" * 64,
    },
    "proposal": {
        "run": "0f" * 16,
        "owner": "model-owner",
        "model": {
            "name": "chest",
            "version": 1,
            "architecture": "resnet18",
            "classes": ["bacterial", "normal", "viral"],
            "channels": 1,
            "image_size": 64,
            "digest": "0" * 64,
        },
        "nodes": [{"name": f"node-{each}", "public_key": "A" * 43} for each in "abc"],
        "rounds": 12,
        "planned": 10,
        "training": {"image_size": 64, "epochs": 1, "batch_size": 32},
        "secure": True,
        "threshold": 2,
        "timeouts": {"review": 86400, "train": 3600, "exchange": 120},
    },
    "nodes": ["node-a", "node-b", "node-c"],
    "training": {"image_size": 64, "epochs": 1, "batch_size": 32},
    "statistics": {"normalise": True, "class_weights": False},
    "privacy": {"dp_sgd": {"clip_norm": 1.0, "epsilon": 2.0}},
    "secure": True,
    "threshold": 2,
    "objections": [],
    "decided": "2026-05-04T08:05:00Z",
    "decided_by": "alice",
    "error": None,
    "loss": 0.71,
    "accuracy": 0.68,
    "evaluation": None,
    "local_rounds": [
        {
            "number": 1,
            "phase": "revealed",
            "samples": 1480,
            "loss": 0.71,
            "accuracy": 0.68,
            "seconds": 21.4,
            "received": {"samples": 370, "loss": 1.12, "accuracy": 0.33},
        }
    ],
}


class Approval(Message):
    """The data set to train on; its classes must be the model's."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"dataset": "chest-2024"}]})

    dataset: Name


class Refusal(Message):
    """``reason`` is told to the model owner."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "No consent yet."}]})

    reason: str = Field(min_length=1, max_length=2000)


class Withdrawal(Message):
    """``reason`` is kept at this site."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "Consent revoked."}]})

    reason: str = Field(min_length=1, max_length=1000)


class RoundView(Message):
    """This site's part in a round: ``received`` is the incoming global model on its validation
    images, loss and accuracy are those of its own training."""

    number: int
    phase: Phase
    samples: int
    loss: float | None
    accuracy: float | None
    seconds: float
    received: Scores | None = None
    stopped: bool = Field(default=False, description="early stopping has ended training here")

    @classmethod
    def of(cls, row: Round) -> RoundView:
        return cls.model_validate({**row.report, "number": row.number, "phase": row.phase})


class SiteError(Message):
    code: str
    detail: str


class RunSummaryView(Message):
    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    id: Id
    owner: Name
    model: Name
    state: RunState
    reason: str = Field(description="why it was refused or how it ended")
    dataset: Name | None
    rounds: int
    rounds_done: int = Field(description="rounds that this site has gone through")
    created: datetime
    ended: datetime | None

    @classmethod
    def of(cls, row: Run) -> RunSummaryView:
        return cls.model_validate(_summary(row))


class RunView(RunSummaryView):
    """``proposal``: all that the site is asked to approve, ``objections``: why a pending run cannot
    be approved as things stand."""

    model_config = ConfigDict(json_schema_extra={"examples": [_WHOLE_EXAMPLE]})

    proposal: Proposal
    model_card: ModelCard
    nodes: tuple[Name, ...]
    training: TrainingSettings
    statistics: StatisticsSettings
    privacy: PrivacySettings
    secure: bool
    threshold: int
    objections: tuple[str, ...] = ()
    decided: datetime | None
    decided_by: str | None
    error: SiteError | None = Field(description="the latest one at this site, if any")
    loss: float | None = Field(description="of this site's latest local training")
    accuracy: float | None
    evaluation: Scores | None = Field(description="the final model on this site's images")
    local_rounds: tuple[RoundView, ...]

    @classmethod
    def whole(cls, row: Run, rounds: list[Round], objections: list[str]) -> RunView:
        proposal = row.read_proposal()
        views = tuple(RoundView.of(each) for each in rounds if each.kind == "train")
        error = {"code": row.error_code, "detail": row.error_detail} if row.error_code else None
        return cls.model_validate(
            {
                **_summary(row),
                "proposal": proposal,
                "model_card": proposal.model,
                "nodes": tuple(node.name for node in proposal.nodes),
                "training": proposal.training,
                "statistics": proposal.statistics,
                "privacy": proposal.privacy,
                "secure": proposal.secure,
                "threshold": proposal.threshold,
                "objections": tuple(objections),
                "decided": row.decided,
                "decided_by": row.decided_by,
                "error": error,
                "loss": views[-1].loss if views else None,
                "accuracy": views[-1].accuracy if views else None,
                "evaluation": row.evaluation,
                "local_rounds": views,
            }
        )


class RunList(Message):
    runs: list[RunSummaryView]


def _summary(row: Run) -> dict[str, object]:
    return {
        "id": row.id,
        "owner": row.owner,
        "model": row.model,
        "state": row.state,
        "reason": row.reason,
        "dataset": row.dataset_name,
        "rounds": row.read_proposal().rounds,
        "rounds_done": row.rounds_done,
        "created": row.created,
        "ended": row.ended,
    }
