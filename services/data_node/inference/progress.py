"""Progress written beside the protocol: no step waits for the disk.

A commit takes some 20 ms. Over a slow line every step would come with one, before its request is
sent; so a thread of its own writes the latest state, and skips what is out of date by then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from primia.messages.inference import Cost

Write = Callable[[str, int, int, Cost], None]


class Progress:
    """A context manager; leaving it writes what is left. What ``write`` raises, ``check`` raises.

    ``seconds``: writes are no closer to one another, but for the end.
    """

    def __init__(self, write: Write, seconds: float) -> None:
        self._write = write
        self._seconds = seconds
        self._changed = threading.Condition()
        self._latest: tuple[str, int, int, Cost] | None = None
        self._error: BaseException | None = None
        self._ending = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join()
        if kind is None:
            self.check()

    def tell(self, phase: str, step: int, steps: int, cost: Cost) -> None:
        with self._changed:
            self._latest = phase, step, steps, cost
            self._changed.notify()

    def check(self) -> None:
        """Raises what kept the progress from being written."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (latest := self._next()) is not None:
            try:
                self._write(*latest)
            except BaseException as error:  # noqa: BLE001 - told to the protocol's own thread
                self._error = error
                return
            with self._changed:
                self._changed.wait_for(lambda: self._ending, self._seconds)

    def _next(self) -> tuple[str, int, int, Cost] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._latest is not None or self._ending)
            latest, self._latest = self._latest, None
            return latest
