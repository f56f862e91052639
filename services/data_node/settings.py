"""Settings of a data node."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from primia.chassis.machine import memory_bytes
from primia.chassis.settings import MIB, ServiceSettings
from primia.messages.common import Digest, Name


class DataNodeSettings(ServiceSettings):
    """``data_roots``: the directories below which data sets may be registered."""

    owner_name: Name = "model-owner"
    owner_url: str = "http://127.0.0.1:8000"
    dealer_name: Name = "crypto-provider"
    dealer_url: str = "http://127.0.0.1:8100"
    data_roots: tuple[Path, ...] = ()
    approval: Literal["manual", "auto"] = "manual"
    accept_plain_updates: bool = Field(
        default=False,
        description="join runs without secure aggregation: the owner sees this site's own update",
    )
    share_scores: Literal["sum", "own", "none"] = Field(
        default="sum",
        description="loss, accuracy and counts of predictions: only summed with other sites' under "
        "masks (in a plain run shown, as the update is), shown as this site's own, or neither",
    )
    other_splits: bool = Field(
        default=False,
        description="join runs that split a data set otherwise than its earlier runs did",
    )
    minimum_sites: int = Field(
        default=2, ge=2, description="threshold below which this site joins no secure run"
    )
    colluding_share: float = Field(
        default=0.1,
        ge=0,
        le=0.5,
        description="share of colluding sites that a run's sparse graph must withstand at least",
    )
    statistics_minimum: int = Field(
        default=10,
        ge=2,
        description="images below which this site gives no statistics and no counts",
    )
    privacy_epsilon: float | None = Field(
        default=None,
        gt=0,
        description="largest ε for one owner on one data set; runs without noise are then refused",
    )
    privacy_delta: float = Field(default=1e-5, gt=0, lt=0.1)
    bundles: dict[Digest, Path] = Field(
        default={}, description="layout of an external model -> this site's MONAI bundle for it"
    )
    poll_seconds: float = Field(default=25, gt=0, le=60)
    max_image_bytes: int = Field(default=32 << 20, ge=1024)
    max_batch: int = Field(default=16, ge=1, le=64)
    max_session_bytes: int = Field(
        default_factory=lambda: 3 * memory_bytes() // 4,
        ge=MIB,
        description="memory that one inference may take; default: 3/4 of the machine's",
    )
    prefetch: int = Field(default=0, ge=0, le=64, description="deals kept ahead for each model")

    @model_validator(mode="after")
    def _peers(self) -> Self:
        self.check_peer_url("PRIMIA_OWNER_URL", self.owner_url)
        self.check_peer_url("PRIMIA_DEALER_URL", self.dealer_url)
        return self
