"""Every service keeps its OpenAPI contract, whatever is sent: generated requests, answers checked.

schemathesis draws sound and broken requests for each operation from the schema; each caller's
answer must have a declared status, content type and shape, and never be a server's error (503 is
one where a peer is asked: none is there).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
import uvicorn
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from primia.chassis import migrate
from primia.chassis.app import create_app
from primia.chassis.limits import STREAM
from services.crypto_provider.main import create_service as crypto_provider
from services.crypto_provider.settings import CryptoProviderSettings
from services.data_node.main import create_service as data_node
from services.data_node.settings import DataNodeSettings
from services.model_owner.main import create_service as model_owner
from services.model_owner.settings import ModelOwnerSettings
from tests.support.contexts import Cast
from tests.support.servers import free_port, wait_until

schemathesis.serializer.alias(STREAM, "application/octet-stream")


def no_server_error(ctx, response, case):
    return None if response.status_code == 503 else not_a_server_error(ctx, response, case)


CHECKS = [
    no_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
SERVICES = {
    "model-owner": ("model_owner", model_owner, ModelOwnerSettings),
    "node-a": ("data_node", data_node, DataNodeSettings),
    "crypto-provider": ("crypto_provider", crypto_provider, CryptoProviderSettings),
}
CALLERS = {
    "model-owner": ("alice", "node-a"),
    "node-a": ("alice",),
    "crypto-provider": ("model-owner", "node-a"),
}


@pytest.fixture(params=SERVICES)
def served(
    request: pytest.FixtureRequest, cast: Cast, broker_url: str, tmp_path: Path
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A service's name, its schema and its address: the real app on a migrated database."""
    name = request.param
    kind, create_service, settings_type = SERVICES[name]
    images = tmp_path / "images"
    images.mkdir()
    given_settings = {"data_roots": (images,)} if kind == "data_node" else {}
    given_settings |= {"poll_seconds": 0.1} if kind == "model_owner" else {}
    ctx = cast.context(kind, name, settings_type, broker_url, **given_settings)
    migrate.upgrade(ctx.db, Path(f"services/{kind}/migrations"))
    app = create_app(create_service(), ctx)
    with listening(app) as url:
        yield name, app.openapi(), url
    ctx.close()


@contextlib.contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The app on a port of its own; without lifespan, so that no agent calls out."""
    port = free_port()
    config = uvicorn.Config(app, "127.0.0.1", port, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, 20, "the server's start")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def operations(document: dict[str, Any]):
    schema = schemathesis.openapi.from_dict(document)
    for found in schema.get_all_operations():
        yield found.ok()


def test_answers_keep_the_contract(served, cast: Cast):
    name, document, url = served
    broken = []
    for caller in CALLERS[name]:
        for operation in operations(document):
            try:
                exercise(operation, url, cast.headers(caller, name))
            except (FailureGroup, Failure) as error:
                broken.append(f"{caller} {operation.label}: {error}")
    assert not broken, "\n\n".join(broken)


def exercise(operation, url: str, headers: dict[str, str]) -> None:
    @settings(
        max_examples=6,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def send(case):
        case.call_and_validate(base_url=url, headers=headers, checks=CHECKS)

    send()


def test_every_operation_is_documented_and_guarded(served):
    """Each but health has a summary and declares 401. A JSON body has an example, but for the
    messages of the aggregation: no person writes those."""
    name, document, _ = served
    assert document["openapi"].startswith("3.1")
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation.get("summary"), (name, method, path)
            if not path.startswith("/health"):
                assert "401" in operation["responses"], (name, method, path)
                if "data nodes" in operation["tags"]:
                    continue
                body = operation.get("requestBody", {}).get("content", {}).get("application/json")
                assert not body or has_example(body, document), (name, method, path)


def has_example(body: dict, document: dict) -> bool:
    reference = body["schema"].get("$ref", "").rsplit("/", 1)[-1]
    schema = document["components"]["schemas"].get(reference, body["schema"])
    return any(key in where for where in (body, schema) for key in ("example", "examples"))


def test_no_operation_answers_a_stranger(served):
    name, document, url = served
    for operation in operations(document):
        if operation.path.startswith("/health"):
            continue
        path = operation.path.replace("{", "").replace("}", "")
        answer = httpx.request(operation.method, url + path)
        assert answer.status_code == 401, (name, operation.method, path)
        assert answer.headers["content-type"] == "application/problem+json"
