"""Settings of the crypto provider."""

from __future__ import annotations

from pydantic import Field

from primia.chassis.machine import cores, memory_bytes
from primia.chassis.settings import ServiceSettings

# A deal of a large network holds this much at most times, whatever its batch.
_DEAL_BYTES = 500_000_000


def _deals_at_once() -> int:
    """One a core, as far as memory goes; at least two, or one long deal holds up all others."""
    return max(2, min(cores(), memory_bytes() // _DEAL_BYTES, 64))


class CryptoProviderSettings(ServiceSettings):
    threads: int = Field(
        default_factory=lambda: min(cores(), 256),
        ge=1,
        le=256,
        description="of a deal that an image waits for; deals made ahead share them",
    )
    concurrency: int = Field(
        default_factory=_deals_at_once, ge=1, le=64, description="deals at once"
    )
    max_stock_bytes: int = Field(default=20 << 30, ge=0, description="disk for dealt material")
    deal_expiry_seconds: float = Field(default=3600, gt=0, description="of a deal handed out")
    max_assistances: int = Field(default=2, ge=1, le=1024, description="SecureNN sessions at once")
    max_stream_bytes: int = Field(default=1 << 30, ge=1 << 20, description="of one of them")
    max_open_deals: int = Field(
        default=8, ge=1, le=10_000, description="for each data node, of images that wait"
    )
    max_kept_deals: int = Field(
        default=32, ge=0, le=10_000, description="for each data node, kept ahead of images"
    )
    ahead_share: float = Field(
        default=0.75,
        gt=0,
        le=1,
        description="of the disk for dealt material: what stock and kept deals may take",
    )
