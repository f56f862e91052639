"""The door, the limits, problem details, health and the pages of an app."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import jwt
import pytest
from fastapi import APIRouter, Depends
from fastapi.testclient import TestClient
from pydantic import BaseModel
from sqlalchemy import MetaData

from primia.chassis.app import create_app
from primia.chassis.auth import require
from primia.chassis.identity import Identity, Principal, pages_audience
from primia.chassis.service import Service
from primia.chassis.settings import ServiceSettings
from primia.errors import Conflict

NAME = "model-owner"


class Body(BaseModel):
    text: str


def routes() -> APIRouter:
    router = APIRouter()

    @router.get("/who")
    def who(caller: Annotated[Principal, Depends(require("user"))]) -> str:
        return caller.name

    @router.post("/echo")
    def echo(_caller: Annotated[Principal, Depends(require("user"))], body: Body) -> str:
        return body.text

    @router.get("/conflict")
    def conflict() -> None:
        raise Conflict("This does not fit.", hint="Do that.", run="x")

    @router.get("/broken")
    def broken() -> None:
        raise RuntimeError("share=123456")

    return router


@pytest.fixture
def client(cast, broker_url):
    settings = ServiceSettings
    ctx = cast.context(
        "demo", NAME, settings, broker_url, max_json_bytes=1024, metrics_token="m" * 32
    )
    service = Service("demo", "Demo", "A demo", settings, MetaData(), Path(), [routes()], {}, {})
    with TestClient(create_app(service, ctx), raise_server_exceptions=False) as client:
        yield client
    ctx.close()


PATHS = [
    "/who",
    "/nowhere",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/metrics",
    "/static-offline-docs/swagger-ui.css",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_stranger_gets_nothing_but_health(client, path):
    answer = client.get(path)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"].endswith("unauthenticated")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_health_answers_a_stranger(client):
    assert client.get("/health/live").json() == {"status": "live"}
    ready = client.get("/health/ready")
    assert ready.status_code == 200, ready.text


def test_an_enrolled_user_gets_in(client, cast):
    assert client.get("/who", headers=cast.headers("alice", NAME)).json() == "alice"


def test_the_role_counts(client, cast):
    answer = client.get("/who", headers=cast.headers("node-a", NAME))
    assert answer.status_code == 403
    assert "data_node" in answer.json()["detail"]


def test_tokens_that_are_refused(client, cast):
    alice = cast.identities["alice"]
    now = int(time.time())
    claims = {"iss": "alice", "aud": NAME, "iat": now - 500, "exp": now - 400}
    forged = Identity.fresh("alice")
    bad = {
        "expired": jwt.encode(claims, alice._key, "EdDSA"),
        "another service": cast.token("alice", "node-a"),
        "not valid": forged.token(NAME),
        "not enrolled": cast.token("mallory", NAME),
        "longer": alice.token(NAME, lifetime=100_000),
        "cannot be read": "garbage",
    }
    for reason, token in bad.items():
        answer = client.get("/who", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 401, reason
        assert reason in answer.json()["detail"]


def test_an_unsigned_token_is_refused(client):
    now = int(time.time())
    claims = {"iss": "alice", "aud": NAME, "iat": now, "exp": now + 60}
    token = jwt.encode(claims, "", algorithm="none")
    assert client.get("/who", headers={"Authorization": f"Bearer {token}"}).status_code == 401


def test_bodies_are_bounded(client, cast):
    headers = cast.headers("alice", NAME)
    small = client.post("/echo", json={"text": "a"}, headers=headers)
    assert small.json() == "a"
    announced = client.post("/echo", json={"text": "a" * 2000}, headers=headers)
    assert announced.status_code == 413

    def pieces():
        yield b'{"text": "'
        for _ in range(50):
            yield b"a" * 100
        yield b'"}'

    streamed = client.post(
        "/echo", content=pieces(), headers={**headers, "Content-Type": "application/json"}
    )
    assert streamed.status_code == 413
    assert streamed.json()["type"].endswith("too-large")


def test_errors_are_problem_documents(client, cast):
    headers = {**cast.headers("alice", NAME), "X-Request-ID": "abc-1"}
    conflict = client.get("/conflict", headers=headers)
    assert conflict.status_code == 409
    assert conflict.json() == {
        "type": "urn:primia:problem:conflict",
        "title": "Conflict with the present state",
        "status": 409,
        "detail": "This does not fit.",
        "hint": "Do that.",
        "run": "x",
        "request_id": "abc-1",
    }
    assert conflict.headers["X-Request-ID"] == "abc-1"


def test_an_unexpected_error_tells_nothing(client, cast):
    answer = client.get("/broken", headers=cast.headers("alice", NAME))
    assert answer.status_code == 500
    assert "123456" not in answer.text


def test_invalid_input_is_named_and_not_echoed(client, cast):
    answer = client.post(
        "/echo", json={"text": {"secret": "s3cret"}}, headers=cast.headers("alice", NAME)
    )
    assert answer.status_code == 422
    assert "text" in answer.json()["detail"]
    assert "s3cret" not in answer.text


def test_unknown_paths_and_methods_are_problems(client, cast):
    headers = cast.headers("alice", NAME)
    assert client.get("/nowhere", headers=headers).json()["type"].endswith("not-found")
    assert client.delete("/who", headers=headers).status_code == 405


def test_metrics_are_for_users_and_the_monitor(client, cast):
    monitor = client.get("/metrics", headers={"Authorization": "Bearer " + "m" * 32})
    assert monitor.status_code == 200
    assert "primia_http_requests_total" in monitor.text
    elsewhere = client.get("/who", headers={"Authorization": "Bearer " + "m" * 32})
    assert elsewhere.status_code == 401
    assert client.get("/metrics", headers=cast.headers("node-a", NAME)).status_code == 403


def test_pages_load_nothing_from_elsewhere(client, cast):
    token = cast.token("alice", pages_audience(NAME))
    signed_in = client.get("/sign-in", params={"token": token}, follow_redirects=False)
    assert signed_in.status_code == 303
    for page in ("/docs", "/redoc"):
        text = client.get(page).text
        assert "https://" not in text.replace("https://github.com", "")
        assert "/static-offline-docs/" in text
    assert client.get("/openapi.json").json()["openapi"].startswith("3.1")
    assert client.get("/who").status_code == 401  # the cookie opens pages only


def test_sign_in_refuses_a_bad_token(client):
    assert client.get("/sign-in", params={"token": "x"}).status_code == 401


def test_a_token_from_an_address_opens_pages_only_and_no_other_does(client, cast):
    seen = cast.token("alice", pages_audience(NAME))
    assert client.get("/who", headers={"Authorization": f"Bearer {seen}"}).status_code == 401
    whole = cast.token("alice", NAME)
    assert client.get("/sign-in", params={"token": whole}).status_code == 401


@pytest.mark.parametrize("cookie", ["a/b=1", "primia_pages=x", "=", "a=\x7f"])
def test_a_strange_cookie_is_no_server_error(client, cookie):
    assert client.get("/docs", headers={"Cookie": cookie}).status_code == 401


def test_a_json_route_takes_no_large_body_by_another_name(client, cast):
    headers = cast.headers("alice", NAME)
    for media in ("application/octet-stream", "multipart/form-data; boundary=x"):
        answer = client.post(
            "/echo", content=b"a" * 2000, headers={**headers, "Content-Type": media}
        )
        assert answer.status_code == 413, media
