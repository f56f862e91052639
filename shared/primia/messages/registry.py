"""What the model owner's users say about models and enrolled nodes."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import ConfigDict, Field

from primia.learning.spec import ModelSpec
from primia.messages.common import Base64Url, Digest, Id, Message, Name
from primia.messages.rounds import Scores

VersionState = Literal["preparing", "ready", "failed"]


class NewModel(ModelSpec):
    """POST /models: a specification under a name. Version 1 has the weights of its seed."""

    name: Name
    description: str = Field(default="", max_length=2000)

    def spec(self) -> ModelSpec:
        return ModelSpec(**{field: getattr(self, field) for field in ModelSpec.model_fields})


class Normalisation(Message):
    """A channel's pixels, from 0 to 1, enter the model as (pixel - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class VersionReport(Message):
    """``metrics``: of the final evaluation, where a run made the version."""

    model: Name
    version: int
    state: VersionState
    reason: str = ""
    source: Literal["initialised", "uploaded", "trained"]
    parent: int | None = Field(default=None, description="the version it was made from")
    run: Id | None = Field(default=None, description="the run that made it")
    image_size: int
    normalisation: Normalisation | None = Field(
        default=None, description="of its input, where its run measured it; else the model's own"
    )
    digest: Digest | None = None
    bytes: int | None = None
    values: int | None = Field(default=None, description="parameters and buffers")
    metrics: Scores | None = None
    created: datetime
    created_by: Name


class ModelReport(Message):
    name: Name
    description: str
    spec: ModelSpec
    created: datetime
    created_by: Name
    newest: VersionReport


class ModelList(Message):
    models: tuple[ModelReport, ...]


class VersionList(Message):
    versions: tuple[VersionReport, ...]


class NewNode(Message):
    """POST /nodes: the identity key that the site's operator gave by hand."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"name": "hospital-a", "public_key": "mMfS0xt0qUqqdTfGmZTTGNXJcBzJm1qOWB0tZpNBQJs"}
            ]
        }
    )

    name: Name
    public_key: Base64Url = Field(description="Ed25519, 32 bytes")


class NodeReport(Message):
    name: Name
    public_key: Base64Url
    last_seen: datetime | None = Field(default=None, description="when it last asked for work")
    run: Id | None = Field(default=None, description="the run it takes part in at present")


class NodeList(Message):
    nodes: tuple[NodeReport, ...]
