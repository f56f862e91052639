"""From this service's API to the worker that holds a session: bytes in, bytes out."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from anyio.to_thread import run_sync

from primia.chassis import direct
from primia.chassis.context import Context
from primia.chassis.telemetry import REQUEST_ID_HEADER, current_request_id
from primia.errors import PeerUnavailable, Spent
from primia.messages.inference import OCTETS, SESSION_TOKEN_HEADER
from services.model_owner.inference import sessions, store
from services.model_owner.inference.domain import SessionState, check_steppable

_CONNECTIONS, _TARGETS = "inference.forward", "inference.targets"
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
    node: str
    host: str
    token: str
    largest_body: int


@dataclass(frozen=True)
class Answer:
    status: int
    media: str
    content: bytes


class Targets:
    """The latest sessions that a step was passed on to: a step waits for no database.

    Only a hint. The worker alone knows whether a session still lives; where it does not, the row
    says why.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._found: OrderedDict[tuple[str, str], Target] = OrderedDict()

    def get(self, session_id: str, node: str) -> Target | None:
        return self._found.get((session_id, node))

    def put(self, session_id: str, node: str, target: Target) -> None:
        self._found[session_id, node] = target
        while len(self._found) > self._capacity:
            self._found.popitem(last=False)

    def drop(self, session_id: str, node: str) -> None:
        self._found.pop((session_id, node), None)


def known(ctx: Context) -> Targets:
    found: Targets = ctx.extras.setdefault(_TARGETS, Targets(ctx.settings.max_sessions))
    return found


def find(ctx: Context, session_id: str, node: str) -> Target:
    """Raises NotFound (also for another node's session), Conflict or Spent."""
    target = _read(ctx, session_id, node)
    known(ctx).put(session_id, node, target)
    return target


def _read(ctx: Context, session_id: str, node: str) -> Target:
    with ctx.db.reading() as session:
        row = store.session_of(session, session_id, node)
    check_steppable(SessionState(row.state), row.reason)
    assert row.host is not None  # of a ready session
    assert row.token is not None
    token = ctx.secrets.open(row.token, sessions.token_purpose(session_id)).decode()
    return Target(session_id, node, row.host, token, row.largest_body)


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
    """Pass a message on: to where the session is now, if it is no longer where it was.

    A worker that is gone ends the session; of one that has ended, as ``find``.
    """
    found = _ask(ctx, target, method, path, body)
    if found is None:
        known(ctx).drop(target.session, target.node)
        now = find(ctx, target.session, target.node)
        found = _ask(ctx, now, method, path, body) if now != target else None
    if found is None:
        known(ctx).drop(target.session, target.node)
        sessions.broke(ctx, target.session, _GONE)
        raise Spent(f"This session is gone: {_GONE}.", hint="Burn its deal and open a new session.")
    return found


def _ask(ctx: Context, target: Target, method: str, path: str, body: bytes) -> Answer | None:
    """None: no worker there holds this session under this token."""
    request = httpx.Request(
        method,
        f"{target.host}/sessions/{target.session}{path}",
        content=body,
        headers={
            SESSION_TOKEN_HEADER: target.token,
            REQUEST_ID_HEADER: current_request_id(),
            "Content-Type": OCTETS,
        },
        extensions={"timeout": _TIMEOUT.as_dict()},
    )
    try:
        with _connections(ctx).sent(request, body) as found:
            content = b"".join(found.pieces)
    except httpx.ConnectError:
        return None
    except httpx.HTTPError as error:
        raise PeerUnavailable(
            f"The worker did not answer ({type(error).__name__}).", hint="Send the step again."
        ) from error
    held = found.status not in (403, 404)
    return Answer(found.status, found.media or OCTETS, content) if held else None


def _connections(ctx: Context) -> direct.Connections:
    found: direct.Connections = ctx.extras.setdefault(_CONNECTIONS, direct.Connections())
    return found
