"""ASGI middleware: one request id, one log line and one count for every request."""

from __future__ import annotations

import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from primia.chassis.telemetry import REQUEST_ID_HEADER, Metrics, get_logger, request_scope

log = get_logger(__name__)
_QUIET = ("/health/live", "/health/ready", "/metrics")


class Observe:
    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        started = time.perf_counter()
        with request_scope(Headers(scope=scope).get(REQUEST_ID_HEADER)) as request_id:

            async def stamped(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
                await send(message)

            try:
                await self._app(scope, receive, stamped)
            finally:
                self._record(scope, status, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(method, str(status)).inc()
        self._metrics.seconds.labels(method).observe(seconds)
        if scope["path"] in _QUIET:
            return
        principal = scope.get("state", {}).get("principal")
        log.info(
            "request",
            method=method,
            # The query may carry a sign-in token; the path never does.
            path=scope["path"],
            status=status,
            milliseconds=round(seconds * 1000, 1),
            caller=principal.name if principal else None,
        )


_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
