"""A two-way stream of bytes between two services over plain HTTP: one request up, one request down.

Whoever only calls out uploads its half as the body of a PUT that lasts as long as the stream, and
reads the other half from the body of a GET. Both ends queue what they send and never wait for the
other end to read, so a message takes one one-way delay. ``ServedStream`` is the end that is called,
``CalledStream`` the end that calls; both send arrays and receive an exact number of bytes.

What may wait unread is bounded; what waits to be sent is bounded by the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primia.chassis.limits import STREAM
from primia.chassis.peers import PeerClient
from primia.errors import Conflict, PeerUnavailable, PrimiaError, Unavailable

# What may wait to be read before the sender's own network is made to wait.
_WAITING_BYTES = 64 << 20
_PIECE = 1 << 20
_ROOM_SECONDS = 0.005
_JOIN_SECONDS = 5.0

Piece = bytes | memoryview


def _bytes(data: NDArray[Any]) -> memoryview:
    return data.reshape(-1).view(np.uint8).data


class Inbox:
    """Bytes that came, for a thread that waits for an exact number of them."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._changed = threading.Condition()
        self._parts: deque[memoryview] = deque()
        self._size = 0
        self._wanted = 0
        self._reason: str | None = None

    def put(self, data: Piece) -> None:
        with self._changed:
            if self._reason is not None:
                return
            self._parts.append(memoryview(data))
            self._size += len(data)
            if self._size >= self._wanted:
                self._changed.notify()

    def end(self, reason: str) -> None:
        """Nothing more comes; what has come can still be taken."""
        with self._changed:
            self._reason = self._reason or reason
            self._changed.notify()

    @property
    def ended(self) -> bool:
        return self._reason is not None

    @property
    def full(self) -> bool:
        with self._changed:
            return self._size > max(_WAITING_BYTES, self._wanted) and self._reason is None

    def take(self, size: int) -> memoryview:
        """Raises PeerUnavailable if they do not come."""
        with self._changed:
            self._wanted = size
            while self._size < size:
                if self._reason is not None:
                    raise PeerUnavailable(f"A stream broke off: {self._reason}.")
                before = self._size
                if not self._changed.wait(self._patience) and self._size == before:
                    raise PeerUnavailable("The other side of a stream fell silent.")
            self._wanted = 0
            self._size -= size
            return self._cut(size)

    def _cut(self, size: int) -> memoryview:
        if self._parts and len(self._parts[0]) >= size:
            first = self._parts[0]
            if len(first) == size:
                return self._parts.popleft()
            self._parts[0] = first[size:]
            return first[:size]
        whole, at = bytearray(size), 0
        while at < size:
            part = self._parts.popleft()
            used = min(len(part), size - at)
            whole[at : at + used] = part[:used]
            if used < len(part):
                self._parts.appendleft(part[used:])
            at += used
        return memoryview(whole)


class Outbox:
    """Bytes to go, from a thread to a coroutine."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: deque[memoryview] = deque()
        self._ended = False
        self._wake: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def put(self, data: memoryview) -> None:
        with self._lock:
            self._parts.extend(data[at : at + _PIECE] for at in range(0, len(data), _PIECE))
            self._notify()

    def end(self) -> None:
        with self._lock:
            self._ended = True
            self._notify()

    def _notify(self) -> None:
        if self._wake is not None:
            loop, event = self._wake
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(event.set)

    async def pieces(self) -> AsyncGenerator[memoryview, None]:
        event = asyncio.Event()
        with self._lock:
            if self._wake is not None:
                raise Conflict("This stream is being read already.")
            self._wake = asyncio.get_running_loop(), event
        while True:
            event.clear()
            with self._lock:
                ready, self._parts, ended = self._parts, deque[memoryview](), self._ended
            for part in ready:
                yield part
            if ready:
                continue
            if ended:
                return
            await event.wait()


class ServedStream:
    """The end that is called. ``patience``: seconds of silence after which ``receive`` gives up.

    ``joined`` is set once both requests are there; ``close`` ends them.
    """

    def __init__(self, patience: float) -> None:
        self._inbox = Inbox(patience)
        self._outbox = Outbox()
        self._lock = threading.Lock()
        self._fed = False
        self._read = False
        self.joined = threading.Event()

    def send(self, data: NDArray[Any]) -> None:
        self._outbox.put(_bytes(data))

    def receive(self, size: int) -> memoryview:
        return self._inbox.take(size)

    def close(self, reason: str = "it was closed") -> None:
        self._inbox.end(reason)
        self._outbox.end()

    async def feed(self, body: AsyncIterator[bytes]) -> None:
        """The upload: to be awaited by its route. Raises Conflict for a second one."""
        self._join(up=True)
        try:
            async for piece in body:
                if piece:
                    self._inbox.put(piece)
                while self._inbox.full:
                    await asyncio.sleep(_ROOM_SECONDS)
                if self._inbox.ended:  # nobody reads any more: the rest of the body is not wanted
                    return
        except BaseException:
            self.close("the other side is gone")
            raise
        self._inbox.end("the other side ended it")

    def pieces(self) -> AsyncGenerator[bytes, None]:
        """The download: the body of its route's answer. Raises Conflict for a second one, at once:
        an answer that has begun can no longer be a refusal."""
        self._join(up=False)
        return self._said()

    async def _said(self) -> AsyncGenerator[bytes, None]:
        try:
            async for piece in self._outbox.pieces():
                yield bytes(piece)
        except (asyncio.CancelledError, GeneratorExit):
            self.close("the other side is gone")
            raise

    def _join(self, up: bool) -> None:
        with self._lock:
            if self._fed if up else self._read:
                raise Conflict("This half of the stream is in use.", hint="Open a new one.")
            if up:
                self._fed = True
            else:
                self._read = True
            if self._fed and self._read:
                self.joined.set()


class CalledStream:
    """The end that calls: PUT and GET of one path. A context manager; leaving it ends both."""

    def __init__(self, peer: PeerClient, path: str, patience: float) -> None:
        self._peer = peer
        self._path = path
        self._patience = patience
        self._inbox = Inbox(patience)
        self.sent = self.received = 0  # bytes
        self._queue: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._upload, self._download)
        ]
        self._stack = ExitStack()

    def __enter__(self) -> CalledStream:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._queue.put(None)
        self._inbox.end("it was closed")
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)

    def send(self, data: NDArray[Any]) -> None:
        self.sent += data.nbytes
        self._queue.put(_bytes(data))

    def receive(self, size: int) -> memoryview:
        self.received += size
        return self._inbox.take(size)

    def _pieces(self) -> Iterator[bytes]:
        while (data := self._queue.get()) is not None:
            for at in range(0, len(data), _PIECE):
                yield bytes(data[at : at + _PIECE])

    def _upload(self) -> None:
        headers = {"Content-Type": STREAM}
        try:
            self._peer.request(
                "PUT", self._path, content=self._pieces(), headers=headers, timeout=self._patience
            )
        except PrimiaError as error:
            self._inbox.end(error.detail.rstrip("."))

    def _download(self) -> None:
        try:
            with self._peer.stream(self._path, timeout=self._patience) as answer:
                for piece in answer.iter_raw():
                    self._inbox.put(piece)
                    while self._inbox.full:
                        time.sleep(_ROOM_SECONDS)
            self._inbox.end(f"{self._peer.name} ended it")
        except PrimiaError as error:
            self._inbox.end(error.detail.rstrip("."))


def require_joined(stream: ServedStream, seconds: float) -> None:
    """Wait until the other side has both its requests open. Raises Unavailable."""
    if not stream.joined.wait(seconds):
        raise Unavailable("The other side did not open its stream in time.")
