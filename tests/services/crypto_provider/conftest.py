"""A crypto provider as a real process has it, and a small plan to deal for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from primia.chassis import migrate
from primia.chassis.app import create_app
from primia.chassis.clock import Clock
from primia.chassis.context import Context
from primia.chassis.service import Service
from primia.messages.inference import PlanOffer
from primia.mpc.plan import Convolution, Dense, Flatten, MaxPool, Narrow, Plan, Relu
from services.crypto_provider.material import api, tasks
from services.crypto_provider.settings import CryptoProviderSettings
from services.crypto_provider.tables import Base
from tests.support.contexts import Cast

MIGRATIONS = Path("services/crypto_provider/migrations")
PLAN_ID = "a" * 32
DEALER = "crypto-provider"


class MovableClock(Clock):
    def __init__(self) -> None:
        self.passed = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.passed


def small_plan(result: str = "scores", features: int = 2) -> Plan:
    ops = (
        Convolution("conv", 0, 3, (3, 3), (1, 1), (1, 1), 1, 6),
        Narrow("cut", 1, 6),
        MaxPool("pool", 2, (2, 2), (2, 2), (0, 0)),
        Relu("relu", 3),
        Flatten("flat", 4),
        Dense("fc", 5, features, 6),
    )
    return Plan((1, 4, 4), 8, ops, result)


def dealer_service() -> Service:
    return Service(
        kind="crypto_provider",
        title="Crypto provider",
        summary="",
        settings=CryptoProviderSettings,
        metadata=Base.metadata,
        migrations=MIGRATIONS,
        routers=[api.router],
        tasks=tasks.TASKS,
        sweeps=tasks.SWEEPS,
    )


def offer(plan: Plan | None = None, stock: int = 0, batch: int = 1) -> PlanOffer:
    plan = plan or small_plan()
    return PlanOffer(
        plan=plan.to_json().decode(), digest=plan.digest().hex(), stock=stock, batch=batch
    )


@pytest.fixture
def make_dealer(cast: Cast, broker_url: str) -> Iterator[Callable[..., Context]]:
    made: list[Context] = []

    def make(database_url: str | None = None, **settings: object) -> Context:
        ctx = cast.context(
            "crypto_provider", DEALER, CryptoProviderSettings, broker_url, database_url, **settings
        )
        ctx.clock = MovableClock()
        migrate.upgrade(ctx.db, MIGRATIONS)
        made.append(ctx)
        return ctx

    yield make
    for ctx in made:
        ctx.close()


@pytest.fixture
def dealer(make_dealer, database_url: str) -> Context:
    """On SQLite and on PostgreSQL."""
    return make_dealer(database_url)


class Speaker:
    """Requests to the dealer as one principal."""

    def __init__(self, client: TestClient, cast: Cast, name: str) -> None:
        self._client, self._cast, self._name = client, cast, name

    def __call__(self, method: str, path: str, message=None, headers=None, **options):
        if message is not None:
            options["content"] = message.model_dump_json()
            options["headers"] = {"Content-Type": "application/json"}
        sent = {**self._cast.headers(self._name, DEALER), **options.pop("headers", {})}
        return self._client.request(method, path, headers={**sent, **(headers or {})}, **options)


@pytest.fixture
def speak(cast: Cast) -> Iterator[Callable[[Context, str], Speaker]]:
    """speak(context, name) -> a speaker; the app of a context is made once."""
    clients: dict[int, TestClient] = {}

    def make(ctx: Context, name: str) -> Speaker:
        if id(ctx) not in clients:
            app = create_app(dealer_service(), ctx)
            clients[id(ctx)] = TestClient(app, raise_server_exceptions=False)
        return Speaker(clients[id(ctx)], cast, name)

    yield make
    for client in clients.values():
        client.close()
