"""The crypto provider, composed of its features."""

from __future__ import annotations

from pathlib import Path

from primia.chassis.service import Service
from services.crypto_provider.assistance import api as assistance_api
from services.crypto_provider.material import api, tasks
from services.crypto_provider.settings import CryptoProviderSettings
from services.crypto_provider.tables import Base


def create_service() -> Service:
    return Service(
        kind="crypto_provider",
        title="PriMIA Grid – crypto provider",
        summary="The trusted dealer of one-time material for encrypted inference.",
        settings=CryptoProviderSettings,
        metadata=Base.metadata,
        migrations=Path(__file__).parent / "migrations",
        routers=(api.router, assistance_api.router),
        tasks=tasks.TASKS,
        sweeps=tasks.SWEEPS,
    )
