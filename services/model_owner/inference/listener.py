"""The internal HTTP listener of the session host: between this service's API and its worker only.

It knows no principals; a step must show the token that was given to the session's row.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Awaitable, Callable

import uvicorn
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from primia.chassis import problems
from primia.chassis.telemetry import REQUEST_ID_HEADER, request_scope
from primia.errors import PrimiaError, TooLarge, Unavailable
from primia.messages.inference import OCTETS, SESSION_TOKEN_HEADER
from services.model_owner.inference.host import OFFLINE, SessionHost

_START_SECONDS = 10
Came = Callable[[int], Awaitable[None]]


def create_listener(host: SessionHost, max_body_bytes: int) -> Starlette:
    async def answer(request: Request, number: int) -> Response:
        session_id, token = request.path_params["session"], _token(request)
        host.admit(session_id, token)  # before a stranger's body is held in memory
        body = await read_body(request, max_body_bytes)
        with request_scope(request.headers.get(REQUEST_ID_HEADER)):
            found = await run_sync(host.step, session_id, token, number, body)
        return Response(found, media_type=OCTETS)

    async def offline(request: Request) -> Response:
        return await answer(request, OFFLINE)

    async def step(request: Request) -> Response:
        return await answer(request, request.path_params["number"])

    async def drop(request: Request) -> Response:
        session_id, token = request.path_params["session"], _token(request)
        await run_sync(host.drop, session_id, token, "the data node ended it")
        return Response(status_code=204)

    async def touch(request: Request) -> Response:
        host.touch(request.path_params["session"], _token(request))
        return Response(status_code=204)

    async def refused(_request: Request, error: Exception) -> Response:
        assert isinstance(error, PrimiaError)
        return problems.response(error)

    return Starlette(
        routes=[
            Route("/sessions/{session}/offline", offline, methods=["PUT"]),
            Route("/sessions/{session}/steps/{number:int}", step, methods=["PUT"]),
            Route("/sessions/{session}/touch", touch, methods=["POST"]),
            Route("/sessions/{session}", drop, methods=["DELETE"]),
        ],
        exception_handlers={PrimiaError: refused},
    )


def _token(request: Request) -> str:
    return request.headers.get(SESSION_TOKEN_HEADER, "")


async def read_body(request: Request, limit: int, came: Came | None = None) -> bytes:
    """The whole body; raises TooLarge as soon as it is over the limit. ``came`` is told of the
    bytes so far with each piece."""
    parts = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise TooLarge(f"The body is larger than the {limit} bytes that a step may have.")
        parts.append(part)
        if came is not None:
            await came(size)
    return b"".join(parts)


class Listener:
    """The listener in a thread of its own; ``url`` is where this service's API reaches it."""

    def __init__(self, app: Starlette, host: str, port: int, url_host: str | None = None) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # With the protocol named, asyncio sets TCP_NODELAY: without it an answer in two pieces
        # waits 40 ms for the acknowledgement of the first.
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((host, port))
        reached = url_host or host
        reached = f"[{reached}]" if ":" in reached else reached
        self.url = f"http://{reached}:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_keep_alive=75,
            timeout_graceful_shutdown=5,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )

    def start(self) -> None:
        self._thread.start()
        waited = threading.Event()
        for _ in range(_START_SECONDS * 20):
            if self._server.started:
                return
            waited.wait(0.05)
        raise Unavailable("The session host's listener did not start.")

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(_START_SECONDS)
        self._socket.close()
