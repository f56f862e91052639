"""Rules of party 0's side: what is served, and the life of a session."""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType

from primia.errors import Conflict, Spent


class ServingState(StrEnum):
    """A failed or withdrawn one is followed by a new row, with a new mask at the dealer."""

    QUEUED = "queued"
    COMPILING = "compiling"
    SERVING = "serving"
    FAILED = "failed"
    WITHDRAWN = "withdrawn"


class ServingEvent(StrEnum):
    START = "start"
    PUBLISH = "publish"
    REFUSE = "refuse"
    WITHDRAW = "withdraw"


SERVING_TRANSITIONS = MappingProxyType(
    {
        (ServingState.QUEUED, ServingEvent.START): ServingState.COMPILING,
        (ServingState.QUEUED, ServingEvent.WITHDRAW): ServingState.WITHDRAWN,
        (ServingState.COMPILING, ServingEvent.START): ServingState.COMPILING,  # after a crash
        (ServingState.COMPILING, ServingEvent.PUBLISH): ServingState.SERVING,
        (ServingState.COMPILING, ServingEvent.REFUSE): ServingState.FAILED,
        (ServingState.COMPILING, ServingEvent.WITHDRAW): ServingState.WITHDRAWN,
        (ServingState.SERVING, ServingEvent.WITHDRAW): ServingState.WITHDRAWN,
        (ServingState.FAILED, ServingEvent.WITHDRAW): ServingState.WITHDRAWN,
    }
)


def step_serving(state: ServingState, event: ServingEvent) -> ServingState:
    following = SERVING_TRANSITIONS.get((state, event))
    if following is None:
        raise Conflict(f"A served model that is {state} cannot take the event {event!r}.")
    return following


class SessionState(StrEnum):
    """``keeping``, ``kept``: asked for ahead, its half is fetched or lies on the disk.
    ``ready``: a worker holds it in memory. ``failed``: it is gone, with its deal."""

    KEEPING = "keeping"
    KEPT = "kept"
    PREPARING = "preparing"
    READY = "ready"
    DONE = "done"
    FAILED = "failed"


class SessionEvent(StrEnum):
    STORED = "stored"
    ASKED = "asked"
    OPENED = "opened"
    FINISHED = "finished"
    BROKE = "broke"


SESSION_TRANSITIONS = MappingProxyType(
    {
        (SessionState.KEEPING, SessionEvent.STORED): SessionState.KEPT,
        (SessionState.KEEPING, SessionEvent.ASKED): SessionState.PREPARING,
        (SessionState.KEEPING, SessionEvent.BROKE): SessionState.FAILED,
        (SessionState.KEPT, SessionEvent.ASKED): SessionState.PREPARING,
        (SessionState.KEPT, SessionEvent.BROKE): SessionState.FAILED,
        (SessionState.PREPARING, SessionEvent.OPENED): SessionState.READY,
        (SessionState.PREPARING, SessionEvent.BROKE): SessionState.FAILED,
        (SessionState.READY, SessionEvent.FINISHED): SessionState.DONE,
        (SessionState.READY, SessionEvent.BROKE): SessionState.FAILED,
    }
)
AHEAD_SESSIONS = (SessionState.KEEPING, SessionState.KEPT)
LIVE_SESSIONS = (SessionState.PREPARING, SessionState.READY)


def step_session(state: SessionState, event: SessionEvent) -> SessionState:
    following = SESSION_TRANSITIONS.get((state, event))
    if following is None and state in (SessionState.DONE, SessionState.FAILED):
        raise Spent("This session has ended.", hint="Open a new one with a new deal.")
    if following is None:
        raise Conflict(f"A session that is {state} cannot take the event {event!r}.")
    return following


def check_steppable(state: SessionState, reason: str) -> None:
    """A step may be sent to a ready session, or repeated to one that is done."""
    if state in AHEAD_SESSIONS:
        raise Conflict("The session was asked for ahead only.", hint="Ask for it without `ahead`.")
    if state is SessionState.PREPARING:
        raise Conflict("The session is still being prepared.", hint="Wait until it is ready.")
    if state is SessionState.FAILED:
        raise Spent(f"This session is gone: {reason}", hint="Burn its deal and open a new session.")
