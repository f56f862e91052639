"""Carries a role's messages over what its driver has: one link to each of the two other roles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from primia.mpc.securenn.wire import Begin, Send, Talk

T = TypeVar("T")
_NOTHING = memoryview(b"")


class Link(Protocol):
    """Bytes to and from one peer, in order. ``send`` queues and never waits for the peer: both
    ends of a round send before they receive. ``receive`` waits for exactly ``size`` bytes."""

    def send(self, data: NDArray[Any]) -> None: ...

    def receive(self, size: int) -> memoryview: ...


def _unwatched(_gate: int) -> None:
    return None


def carry(talk: Talk[T], links: Mapping[int, Link], watch: Callable[[int], None] = _unwatched) -> T:
    """Run a role to its end and return its result. ``watch`` is told the number of each nonlinear
    step as it begins, and may raise."""
    answer = None
    while True:
        try:
            step = talk.send(answer) if answer is not None else next(talk)
        except StopIteration as end:
            result: T = end.value
            return result
        if isinstance(step, Send):
            links[step.peer].send(step.data)
            answer = _NOTHING
        elif isinstance(step, Begin):
            watch(step.gate)
            answer = _NOTHING
        else:
            answer = links[step.peer].receive(step.size)
