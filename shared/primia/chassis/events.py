"""Server-sent events from rows: replayed after Last-Event-ID, then followed until the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from anyio.to_thread import run_sync
from fastapi import Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from primia.errors import InvalidInput

_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Event:
    """``id`` grows by row; ``data`` is JSON text; ``last`` ends the stream."""

    id: int
    kind: str
    data: str
    last: bool = False


def sse(request: Request, after: Callable[[int], Sequence[Event]], over: bool) -> Response:
    """Stream the events that ``after(last id seen)`` yields, until one of them is the last.

    204 where it is ``over`` and nothing comes any more: a browser would connect again for ever.
    """
    given = request.headers.get("Last-Event-ID", "0")
    if not given.isascii() or not given.isdigit() or len(given) > 18:
        raise InvalidInput("Last-Event-ID must be the number of an event.")

    if over and not after(int(given)):
        return Response(status_code=204)

    async def follow() -> AsyncIterator[ServerSentEvent]:
        seen = int(given)
        while not await request.is_disconnected():
            for event in await run_sync(after, seen):
                seen = event.id
                yield ServerSentEvent(data=event.data, event=event.kind, id=str(event.id))
                if event.last:
                    return
            await asyncio.sleep(_POLL_SECONDS)

    return EventSourceResponse(follow(), ping=15)
