"""Settings of the crypto provider."""

from __future__ import annotations

from pydantic import Field

from primia.chassis.settings import ServiceSettings


class CryptoProviderSettings(ServiceSettings):
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
