"""From this service's API to the worker that holds a session: bytes in, bytes out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from anyio.to_thread import run_sync

from primia.chassis.context import Context
from primia.chassis.telemetry import REQUEST_ID_HEADER, current_request_id
from primia.errors import PeerUnavailable, Spent
from primia.messages.inference import OCTETS, SESSION_TOKEN_HEADER
from services.model_owner.inference import sessions, store
from services.model_owner.inference.domain import SessionState, check_steppable

_CLIENT = "inference.forward"
# A step is one layer's arithmetic; a wide layer and a large batch on a busy machine take a while.
_TIMEOUT = httpx.Timeout(120, connect=3)
# While a body arrives, its session's worker is told so: at most so often, at least so many bytes.
_TOUCH_SECONDS = 5.0
_TOUCH_BYTES = 1 << 20
_GONE = "the model owner's worker that held it is gone"


@dataclass(frozen=True, repr=False)
class Target:
    """Where a session is held, and the secret that its worker asks for."""

    session: str
    host: str
    token: str
    largest_body: int


@dataclass(frozen=True)
class Answer:
    status: int
    media: str
    content: bytes


def find(ctx: Context, session_id: str, node: str) -> Target:
    """Raises NotFound (also for another node's session), Conflict or Spent."""
    with ctx.db.reading() as session:
        row = store.session_of(session, session_id, node)
    check_steppable(SessionState(row.state), row.reason)
    assert row.host is not None  # of a ready session
    assert row.token is not None
    token = ctx.secrets.open(row.token, sessions.token_purpose(session_id)).decode()
    return Target(session_id, row.host, token, row.largest_body)


class Upload:
    """Keeps a session from ending as idle while a long step still arrives from the data node.

    Only for a body that moves: ``_TOUCH_BYTES`` since the worker was told last, which makes 9 kB/s
    within the default idle time.
    """

    def __init__(
        self, ctx: Context, target: Target, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ctx = ctx
        self._target = target
        self._clock = clock
        self._told = (clock(), 0)  # when, at how many bytes

    async def came(self, size: int) -> None:
        since, told = self._told
        now = self._clock()
        if now - since < _TOUCH_SECONDS or size - told < _TOUCH_BYTES:
            return
        self._told = (now, size)
        await run_sync(send, self._ctx, self._target, "POST", "/touch")


def send(ctx: Context, target: Target, method: str, path: str, body: bytes = b"") -> Answer:
    """Pass a message on. A worker that is gone ends the session."""
    headers = {
        SESSION_TOKEN_HEADER: target.token,
        REQUEST_ID_HEADER: current_request_id(),
        "Content-Type": OCTETS,
    }
    url = f"{target.host}/sessions/{target.session}{path}"
    try:
        found = _client(ctx).request(method, url, content=body, headers=headers)
    except httpx.ConnectError as error:
        raise _lost(ctx, target) from error
    except httpx.HTTPError as error:
        raise PeerUnavailable(
            f"The worker did not answer ({type(error).__name__}).", hint="Send the step again."
        ) from error
    if found.status_code == 404:
        raise _lost(ctx, target)
    return Answer(found.status_code, found.headers.get("Content-Type", OCTETS), found.content)


def _lost(ctx: Context, target: Target) -> Spent:
    sessions.broke(ctx, target.session, _GONE)
    return Spent(f"This session is gone: {_GONE}.", hint="Burn its deal and open a new session.")


def _client(ctx: Context) -> httpx.Client:
    if _CLIENT not in ctx.extras:
        ctx.extras.setdefault(_CLIENT, httpx.Client(timeout=_TIMEOUT))
    client: httpx.Client = ctx.extras[_CLIENT]
    return client
