"""The session host: party 0 of every open inference, in this worker's memory and nowhere else.

The protocol's rules are the party's own (each step once and in order, the latest one repeated gets
its stored answer); the host serialises the requests of a session, knows its token, and ends it when
nobody comes, when it breaks, or when it is done.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from primia.chassis.identity import encode_key
from primia.chassis.telemetry import get_logger
from primia.errors import (
    Forbidden,
    NotFound,
    PrimiaError,
    Spent,
    Unavailable,
    UnexpectedMessage,
)
from primia.mpc.owner import Owner
from primia.prg import fresh_bytes

log = get_logger(__name__)
# The number of the message that comes before step 0.
OFFLINE = -1

# Told when a session has ended: its id, whether it was finished, and if not, why.
Ended = Callable[[str, bool, str], None]
# Does a piece of work, now or in a thread of its own.
Aside = Callable[[Callable[[], None]], object]


def _at_once(work: Callable[[], None]) -> None:
    work()


@dataclass
class _Hosted:
    owner: Owner
    let_go: Callable[[], None]
    token: str
    touched: float
    lock: threading.Lock = field(default_factory=threading.Lock)
    last: tuple[int, bytes, bytes] | None = None  # number, digest of body, answer: once done
    gone: str = ""

    def __repr__(self) -> str:
        return f"_Hosted({self.owner!r})"


class SessionHost:
    """Thread-safe. ``clock`` counts seconds and is replaced in tests.

    ``aside`` does what follows the last answer (the row, half a gigabyte to let go of: 0.1 s), so
    that the answer need not wait for it.
    """

    def __init__(
        self,
        limit: int,
        idle_seconds: float,
        ended: Ended,
        clock: Callable[[], float] = time.monotonic,
        aside: Aside = _at_once,
    ) -> None:
        self._limit = limit
        self._idle = idle_seconds
        self._ended = ended
        self._clock = clock
        self._aside = aside
        self._lock = threading.Lock()
        self._sessions: dict[str, _Hosted] = {}

    def require_room(self) -> None:
        """Raises Unavailable if no session could be opened now."""
        with self._lock:
            busy = sum(hosted.last is None for hosted in self._sessions.values())
        if busy >= self._limit:
            raise Unavailable(f"This worker holds {self._limit} sessions, as many as it may.")

    def open(self, session_id: str, owner: Owner, let_go: Callable[[], None] = lambda: None) -> str:
        """Take a session in; returns the token that every step must show.

        ``let_go``: called when the session has ended, of what it held.
        """
        self.require_room()
        token = encode_key(fresh_bytes(24))
        with self._lock:
            if session_id in self._sessions:
                raise UnexpectedMessage("This session is open already.")
            self._sessions[session_id] = _Hosted(owner, let_go, token, self._clock())
        return token

    def step(self, session_id: str, token: str, number: int, body: bytes) -> bytes:
        """The answer to a step, or to the ``OFFLINE`` message.

        NotFound, Forbidden, Spent: not this session. UnexpectedMessage, MalformedMessage: refused,
        the session is as it was. Any other exception ends it.
        """
        hosted = self._find(session_id, token)
        with hosted.lock:
            if hosted.gone:
                raise Spent(hosted.gone)
            hosted.touched = self._clock()
            if hosted.last is not None:
                return _again(hosted.last, number, body)
            answer = self._advance(session_id, hosted, number, body)
            hosted.touched = self._clock()
            if hosted.owner.done:
                hosted.last = (number, hashlib.sha256(body).digest(), answer)
                self._aside(lambda: self._finish(session_id, hosted))
            return answer

    def _finish(self, session_id: str, hosted: _Hosted) -> None:
        hosted.owner.close()
        hosted.let_go()
        self._ended(session_id, True, "")

    def _advance(self, session_id: str, hosted: _Hosted, number: int, body: bytes) -> bytes:
        owner = hosted.owner
        try:
            return owner.offline(body) if number == OFFLINE else owner.step(number, body)
        except PrimiaError:
            raise
        except Exception as error:
            # The exception's text may quote values: its type alone is told.
            self._end(session_id, hosted, f"step {number} failed ({type(error).__name__})")
            raise PrimiaError("The session broke; its material is burned.") from error

    def drop(self, session_id: str, token: str, reason: str) -> None:
        hosted = self._find(session_id, token)
        with hosted.lock:
            self._end(session_id, hosted, reason)

    def sweep(self) -> list[str]:
        """End the sessions that nobody has touched for long; the ids of those that are open."""
        now = self._clock()
        for session_id, hosted in self._known():
            if now - hosted.touched > self._idle and hosted.lock.acquire(blocking=False):
                try:
                    self._end(session_id, hosted, "no step came for too long")
                finally:
                    hosted.lock.release()
        return [session_id for session_id, hosted in self._known() if hosted.last is None]

    def close(self) -> None:
        for session_id, hosted in self._known():
            with hosted.lock:
                self._end(session_id, hosted, "the model owner's worker was stopped")

    def touch(self, session_id: str, token: str) -> None:
        """A step is on its way: the session is not idle."""
        self._find(session_id, token).touched = self._clock()

    def _known(self) -> list[tuple[str, _Hosted]]:
        with self._lock:
            return list(self._sessions.items())

    def _end(self, session_id: str, hosted: _Hosted, reason: str) -> None:
        with self._lock:
            known = self._sessions.pop(session_id, None)
        if known is None:
            return
        finished = hosted.last is not None
        hosted.gone = f"This session has ended: {reason}."
        hosted.last = None
        hosted.owner.close()
        hosted.let_go()
        if not finished:
            log.warning("session ended", session=session_id, reason=reason)
            self._ended(session_id, False, reason)

    def admit(self, session_id: str, token: str) -> None:
        """Raises NotFound or Forbidden unless the token is the session's."""
        self._find(session_id, token)

    def _find(self, session_id: str, token: str) -> _Hosted:
        with self._lock:
            hosted = self._sessions.get(session_id)
        if hosted is None:
            raise NotFound("This worker holds no such session.")
        if not hmac.compare_digest(hosted.token.encode(), token.encode()):
            raise Forbidden("The session's token is wrong.")
        return hosted


def _again(last: tuple[int, bytes, bytes], number: int, body: bytes) -> bytes:
    if number != last[0]:
        raise UnexpectedMessage("The session is done; only its last step can be repeated.")
    if not hmac.compare_digest(hashlib.sha256(body).digest(), last[1]):
        raise UnexpectedMessage("This step was answered before, for another body.")
    return last[2]
