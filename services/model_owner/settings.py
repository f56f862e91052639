"""Settings of the model owner."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from primia.chassis.machine import memory_bytes
from primia.chassis.settings import MIB, ServiceSettings
from primia.messages.common import Name


class ModelOwnerSettings(ServiceSettings):
    """``session_host``/``session_port``: where the worker's internal listener for inference steps
    binds (0: any free port); ``session_url_host`` is what the API uses to reach it."""

    dealer_name: Name = "crypto-provider"
    dealer_url: str = "http://127.0.0.1:8100"
    session_host: str = "127.0.0.1"
    session_port: int = Field(default=0, ge=0, le=65535)
    session_url_host: str | None = None
    max_sessions: int = Field(default=8, ge=1, le=1024)
    max_sessions_a_node: int = Field(default=4, ge=1, le=1024)
    max_kept_a_node: int = Field(
        default=8, ge=0, le=1024, description="sessions whose material is kept ahead of images"
    )
    max_kept_bytes: int = Field(default=20 << 30, ge=0, description="disk for all of them")
    kept_seconds: float = Field(default=86400, gt=0, description="how long they are kept")
    max_session_bytes: int = Field(
        default_factory=lambda: 3 * memory_bytes() // 4,
        ge=MIB,
        description="memory that one inference may take; default: 3/4 of the machine's",
    )
    max_streams: int = Field(default=2, ge=1, le=1024, description="SecureNN sessions at once")
    max_stream_bytes: int = Field(default=1 << 30, ge=1 << 20, description="of one of them")
    session_idle_seconds: float = Field(default=120, gt=0)
    max_model_bytes: int = Field(default=2 << 30, ge=1024)
    poll_seconds: float = Field(default=25, gt=0, le=60, description="longest wait for work")

    @model_validator(mode="after")
    def _peers(self) -> Self:
        self.check_peer_url("PRIMIA_DEALER_URL", self.dealer_url)
        return self
