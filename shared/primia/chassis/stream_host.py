"""Work that talks over streams, a thread each, in the process that the streams come to.

A session is in this process's memory and nowhere else: it ends with its streams, and its id means
nothing to another process of the service (more than one needs sticky routing).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.responses import Response, StreamingResponse

from primia.chassis.duplex import ServedStream
from primia.chassis.limits import STREAM
from primia.chassis.telemetry import get_logger
from primia.errors import NotFound, PrimiaError, Unavailable
from primia.prg import fresh_bytes

log = get_logger(__name__)

Streams = Mapping[str, ServedStream]


@dataclass(frozen=True)
class _Hosted:
    streams: Streams
    node: str
    about: Mapping[str, Any]


class StreamHost:
    """``limit`` sessions at once, ``limit_a_node`` for one data node."""

    def __init__(self, limit: int, limit_a_node: int) -> None:
        self._limit = limit
        self._limit_a_node = limit_a_node
        self._lock = threading.Lock()
        self._sessions: dict[str, _Hosted] = {}

    def open(
        self,
        node: str,
        streams: Streams,
        work: Callable[[], None],
        about: Mapping[str, Any] | None = None,
    ) -> str:
        """Start ``work``; its end ends the streams, which are named by who may use them.

        ``about``: what the session is for, kept for its parties to ask.
        Raises Unavailable where as many sessions are open as may be.
        """
        session_id = fresh_bytes(16).hex()
        with self._lock:
            busy = [hosted.node for hosted in self._sessions.values()]
            if len(busy) >= self._limit or busy.count(node) >= self._limit_a_node:
                raise Unavailable(
                    "As many streamed sessions as this service keeps are open already.",
                    hint="Try again shortly.",
                    retry_after=2,
                )
            self._sessions[session_id] = _Hosted(streams, node, about or {})
        args = (session_id, streams, work)
        threading.Thread(target=self._run, args=args, daemon=True).start()
        return session_id

    def _run(self, session_id: str, streams: Streams, work: Callable[[], None]) -> None:
        reason = "it is done"
        try:
            work()
        except PrimiaError as error:
            reason = error.detail
            log.warning("streamed session broke", session=session_id, reason=reason)
        except Exception as error:  # noqa: BLE001 - its text may quote values: its type is told
            reason = f"it failed ({type(error).__name__})"
            log.error("streamed session broke", session=session_id, reason=reason)
        finally:
            for stream in streams.values():
                stream.close(reason)
            with self._lock:
                del self._sessions[session_id]

    @property
    def busy(self) -> int:
        with self._lock:
            return len(self._sessions)

    def stream(self, session_id: str, caller: str) -> ServedStream:
        """Raises NotFound, also for a session of others."""
        return self._find(session_id, caller).streams[caller]

    def about(self, session_id: str, caller: str) -> Mapping[str, Any]:
        """Raises NotFound, also for a session of others."""
        return self._find(session_id, caller).about

    def _find(self, session_id: str, caller: str) -> _Hosted:
        with self._lock:
            hosted = self._sessions.get(session_id)
        if hosted is None or caller not in hosted.streams:
            raise NotFound("There is no such session, or it has ended.")
        return hosted


async def upload(request: Request, stream: ServedStream) -> Response:
    """The route of a PUT."""
    await stream.feed(request.stream())
    return Response(status_code=204)


def download(stream: ServedStream) -> StreamingResponse:
    """The route of a GET."""
    return StreamingResponse(
        stream.pieces(), media_type=STREAM, headers={"Cache-Control": "no-store"}
    )
