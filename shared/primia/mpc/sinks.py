"""Where the dealer writes: three sinks, hashed and written behind the dealer's back.

The dealer is ahead of hashing and of writing by a few pieces at most, so that all cores work and
memory stays bounded; both threads see the pieces in their order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Queue
from threading import Thread
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from primia.mpc.material import Part
from primia.ring import Ring

# Pieces under way, the largest of them a block of keys (about 12 MB).
_AHEAD = 4

Piece = bytes | memoryview
Call = Callable[[Any], object]


class Sink(Protocol):
    """A binary file, or anything that takes bytes in order and keeps none of them by reference."""

    def write(self, data: Piece, /) -> object: ...


@dataclass(frozen=True)
class Sinks:
    p0: Sink
    p1: Sink
    common: Sink

    def by_part(self) -> dict[Part, Sink]:
        return {"p0": self.p0, "p1": self.p1, "common": self.common}


class _Lane:
    """Calls in a thread of its own, in order. A call that fails ends it; ``call`` tells."""

    def __init__(self) -> None:
        self._waiting: Queue[tuple[Call, Piece] | None] = Queue(_AHEAD)
        self._failure: BaseException | None = None
        self._thread = Thread(target=self._work)
        self._thread.start()

    def call(self, function: Call, argument: Piece) -> None:
        """Raises what an earlier call raised."""
        self._check()
        self._waiting.put((function, argument))

    def finish(self) -> None:
        """Waits for what was called and ends the thread; raises what a call raised."""
        self.close()
        self._check()

    def close(self) -> None:
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            function, argument = item
            if self._failure is None:  # else only make room, so that nobody waits for it
                try:
                    function(argument)
                except BaseException as error:  # noqa: BLE001 - raised again in call or finish
                    self._failure = error


class Pipeline:
    """The two threads behind a deal."""

    def __init__(self) -> None:
        self.hashing, self.writing = _Lane(), _Lane()

    def finish(self) -> None:
        for lane in (self.hashing, self.writing):
            lane.finish()


@contextmanager
def pipeline() -> Iterator[Pipeline]:
    made = Pipeline()
    try:
        yield made
    finally:
        for lane in (made.hashing, made.writing):
            lane.close()


class HashedSink:
    """A sink that counts and hashes what passes. What is written must not change any more."""

    def __init__(self, sink: Sink, first: bytes, through: Pipeline) -> None:
        self._sink = sink
        self._hash = hashlib.sha256()
        self._through = through
        self.size = 0
        self.write(first)

    def write(self, data: Piece) -> None:
        self.size += len(data)
        self._through.hashing.call(self._hash.update, data)
        self._through.writing.call(self._sink.write, data)

    def words(self, values: Ring) -> None:
        self.array(np.ascontiguousarray(values, dtype="<u4"))

    def array(self, values: NDArray[Any]) -> None:
        """The bytes of a contiguous array."""
        self.write(values.reshape(-1).view(np.uint8).data)

    def digest(self) -> str:
        """Hexadecimal, once the pipeline has finished."""
        return self._hash.hexdigest()
