"""Fuzz targets behind the public routes of real applications: tokens, rows, forwarding, streams."""

from __future__ import annotations

import atexit
import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from starlette.testclient import TestClient

from primia.chassis import migrate
from primia.chassis.app import create_app
from primia.chassis.context import Context
from primia.chassis.duplex import ServedStream
from primia.chassis.limits import STREAM
from primia.chassis.stream_host import StreamHost
from primia.errors import PrimiaError
from primia.mpc.securenn.assistant import Assistant
from primia.mpc.securenn.driver import Link, carry
from primia.mpc.securenn.prepared import PreparedModel
from primia.mpc.securenn.roles import Owner
from primia.mpc.securenn.wire import ASSISTANT, CLIENT, OWNER
from primia.prg import Seed
from services.crypto_provider.assistance import api as assistance
from services.crypto_provider.main import create_service as crypto_provider
from services.model_owner.inference import sessions, store, streams
from services.model_owner.inference.host import SessionHost
from services.model_owner.inference.listener import Listener, create_listener
from services.model_owner.main import create_service as model_owner
from tests.fuzz.session import ID, Said, change_a_step, check, fresh_session, path, plan
from tests.support.contexts import Cast
from tests.support.inference import DEAL, weights_for

NODE, OWNERS, DEALERS = "node-a", "model-owner", "crypto-provider"
_SECONDS = 10.0


@cache
def cast() -> Cast:
    root = Path(tempfile.mkdtemp(prefix="primia-fuzz-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return Cast(root)


@cache
def served(name: str) -> tuple[Context, TestClient]:
    """A service's application as it is, but for a broker: what it enqueues is lost."""
    service = model_owner() if name == OWNERS else crypto_provider()
    more = {"dealer_url": "http://127.0.0.1:9"} if name == OWNERS else {}
    kind, settings = service.kind, service.settings
    ctx = cast().context(kind, name, settings, "redis://127.0.0.1:9/0", **more)
    ctx.jobs.enqueue = lambda *_, **__: None  # type: ignore[method-assign]
    migrate.upgrade(ctx.db, service.migrations)
    app = create_app(dataclasses.replace(service, background=()), ctx)
    return ctx, TestClient(app, raise_server_exceptions=True)


@cache
def worker() -> tuple[SessionHost, Listener, list[bool]]:
    """The worker's half of a model owner, and how its sessions have ended."""
    ended: list[bool] = []
    host = SessionHost(4, 600, lambda _id, finished, _reason: ended.append(finished))
    listener = Listener(create_listener(host, 1 << 16), "127.0.0.1", 0)
    listener.start()
    return host, listener, ended


def start() -> None:
    served(OWNERS)
    served(DEALERS)
    worker()


def public_step(data: bytes) -> None:
    """At the route that a data node calls; the worker's listener behind it is another thread's."""
    ctx, client = served(OWNERS)
    host, listener, ended = worker()
    token = host.open(ID, fresh_session().owner)
    ended.clear()
    with ctx.db.session() as session:
        session.query(store.SessionRow).delete()
        row = store.SessionRow(
            id=ID, plan="0" * 32, node=NODE, deal=DEAL.hex(), batch=1, state="ready",
            host=listener.url, token=ctx.secrets.seal(token.encode(), sessions.token_purpose(ID)),
            largest_body=sessions.largest_body(plan(), 1), created=ctx.clock.now(),
            alive_until=ctx.clock.after(3600),
        )  # fmt: skip
        session.add(row)
    headers = cast().headers(NODE, OWNERS)

    def put(number: int, body: bytes) -> tuple[int, bytes]:
        url = f"/inference/sessions/{ID}/{path(number)}"
        answer = client.put(url, content=body, headers=headers)
        return answer.status_code, answer.content

    try:
        change_a_step(data, put, ended)
    finally:
        host.drop(ID, token, "the next one comes")


def owner_stream(data: bytes) -> None:
    """What a data node says to party 0; the crypto provider says zeros."""
    ctx, client = served(OWNERS)
    owner = Owner(PreparedModel(plan(), weights_for(plan(), 100)), 1, Seed(bytes(16)))

    def work(stream: ServedStream) -> None:
        links: Mapping[int, Link] = {CLIENT: stream, ASSISTANT: Said(b"")}
        carry(owner.prepare(), links)
        carry(owner.run(), links)

    _say(streams.host(ctx), client, OWNERS, "/inference/streams", work, data)


def assistance_stream(data: bytes) -> None:
    """What a data node says to the third party; the model owner says zeros."""
    ctx, client = served(DEALERS)
    assistant = Assistant(plan(), 1, Seed(bytes(16)))

    def work(stream: ServedStream) -> None:
        links: Mapping[int, Link] = {OWNER: Said(b""), CLIENT: stream}
        carry(assistant.prepare(), links)
        carry(assistant.run(), links)

    _say(assistance._host(ctx), client, DEALERS, "/assistances", work, data)


def _say(
    host: StreamHost,
    client: TestClient,
    service: str,
    route: str,
    work: Callable[[ServedStream], None],
    data: bytes,
) -> None:
    """Upload it, read what is said; the session ends, and not by an error that is not declared."""
    stream, wrong = ServedStream(_SECONDS), []

    def watched() -> None:
        try:
            work(stream)
        except PrimiaError:
            raise
        except Exception as error:
            wrong.append(error)
            raise

    url = f"{route}/{host.open(NODE, {NODE: stream}, watched)}/stream"
    headers = {**cast().headers(NODE, service), "Content-Type": STREAM}
    said = client.put(url, content=data, headers=headers).status_code
    check(said in (204, 404), f"status {said} of the upload")
    heard = client.get(url, headers=headers).status_code
    check(heard in (200, 404), f"status {heard} of the download")
    deadline = time.monotonic() + _SECONDS
    while host.busy and time.monotonic() < deadline:
        time.sleep(0.005)
    check(host.busy == 0, "the session ends")
    if wrong:
        raise wrong[0]
