"""Every state of a served model and of a session against every event."""

import itertools

import pytest

from primia.errors import Conflict, Spent
from services.model_owner.inference.domain import (
    ServingEvent,
    ServingState,
    SessionEvent,
    SessionState,
    check_steppable,
    step_serving,
    step_session,
)

SERVING = {
    ("queued", "start"): "compiling",
    ("queued", "withdraw"): "withdrawn",
    ("compiling", "start"): "compiling",
    ("compiling", "publish"): "serving",
    ("compiling", "refuse"): "failed",
    ("compiling", "withdraw"): "withdrawn",
    ("serving", "withdraw"): "withdrawn",
    ("failed", "withdraw"): "withdrawn",
}
SESSION = {
    ("keeping", "stored"): "kept",
    ("keeping", "asked"): "preparing",
    ("keeping", "broke"): "failed",
    ("kept", "asked"): "preparing",
    ("kept", "broke"): "failed",
    ("preparing", "opened"): "ready",
    ("preparing", "broke"): "failed",
    ("ready", "finished"): "done",
    ("ready", "broke"): "failed",
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(ServingState, ServingEvent)))
def test_serving(state, event):
    following = SERVING.get((state.value, event.value))
    if following is None:
        with pytest.raises(Conflict):
            step_serving(state, event)
    else:
        assert step_serving(state, event).value == following


@pytest.mark.parametrize(("state", "event"), list(itertools.product(SessionState, SessionEvent)))
def test_session(state, event):
    following = SESSION.get((state.value, event.value))
    if following is not None:
        assert step_session(state, event).value == following
    else:
        ended = state in (SessionState.DONE, SessionState.FAILED)
        with pytest.raises(Spent if ended else Conflict):
            step_session(state, event)


def test_which_sessions_take_steps():
    check_steppable(SessionState.READY, "")
    check_steppable(SessionState.DONE, "")
    with pytest.raises(Conflict):
        check_steppable(SessionState.PREPARING, "")
    for state in (SessionState.KEEPING, SessionState.KEPT):
        with pytest.raises(Conflict, match="asked for ahead only"):
            check_steppable(state, "")
    with pytest.raises(Spent, match="the worker is gone"):
        check_steppable(SessionState.FAILED, "the worker is gone")
