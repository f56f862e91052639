"""Bounds on what a request may send, checked while it is read."""

from __future__ import annotations

import math

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from primia.chassis import problems
from primia.errors import TooLarge

# Lasts as long as two services talk (primia.chassis.duplex).
STREAM = "application/vnd.primia.stream"


class BodyLimit:
    """ASGI middleware: JSON up to one bound, anything else up to another; over it, 413.

    A stream has no bound, unless its route parses a body: others read it piece by piece.
    """

    def __init__(self, app: ASGIApp, max_json_bytes: int, max_body_bytes: int) -> None:
        self._app = app
        self._json = max_json_bytes
        self._other = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        media = headers.get("Content-Type", "application/json").partition(";")[0].strip().lower()
        binary = media in ("application/octet-stream", "multipart/form-data")
        limit: float = self._other if binary else self._json
        if media == STREAM:
            limit = math.inf
        announced = headers.get("Content-Length")
        if announced is not None and (not announced.isdigit() or int(announced) > limit):
            await problems.response(_too_large(limit))(scope, receive, send)
            return
        seen = 0
        started = False

        async def counted() -> Message:
            nonlocal seen, limit
            # Known once the request has been routed: a route that parses its body holds it whole.
            if getattr(scope.get("route"), "body_field", None) is not None:
                limit = self._json
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _too_large(limit)
            return message

        async def corrected(message: Message) -> None:
            # FastAPI turns an error while it reads a body into a 400 of its own: the true reason
            # goes out instead.
            nonlocal started
            if seen <= limit:
                await send(message)
            elif not started:
                started = True
                await problems.response(_too_large(limit))(scope, receive, send)

        await self._app(scope, counted, corrected)


def _too_large(limit: float) -> TooLarge:
    return TooLarge(f"The body is larger than the {limit} bytes that this service accepts.")
