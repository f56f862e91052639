"""A sound session of either protocol, whose messages fuzz targets change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from primia.mpc.plan import Plan
from services.model_owner.inference.host import OFFLINE
from tests.support.inference import SESSION, Builder, Session, weights_for
from tests.support.securenn import Session as StreamedSession

ID = SESSION.hex()
IMAGE = np.zeros((1, 1, 4, 4), np.float32)
# (step, body) -> (status, answer)
Put = Callable[[int, bytes], tuple[int, bytes]]


def check(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(what)


@cache
def plan() -> Plan:
    """A plan with a convolution, both kinds of gate and a label."""
    b = Builder((1, 4, 4))
    x = b.relu(b.max_pool(b.conv(0, 2)))
    b.head(x, 2)
    return b.plan(8, "label")


def fresh_session() -> Session:
    return Session(plan(), weights_for(plan(), 100))


@cache
def transcript() -> tuple[tuple[int, bytes, bytes], ...]:
    """(number, request, answer) of every message of a sound session."""
    session = fresh_session()
    session.run(IMAGE)
    offline = (OFFLINE, session.offline, session.accepted)
    steps = zip(range(plan().requests), session.requests, session.responses, strict=True)
    return (offline, *steps)


@cache
def streamed() -> dict[tuple[int, int], bytes]:
    """(from, to) -> all that a sound session of SecureNN says."""
    session = StreamedSession(plan(), weights_for(plan(), 100))
    session.run(IMAGE)
    pipes = session.grid.pipes.items()
    return {pair: b"".join(each.tobytes() for each in pipe.log) for pair, pipe in pipes}


@dataclass
class Said:
    """A link whose other end says these bytes, again and again, whatever it hears."""

    data: bytes
    at: int = 0

    def send(self, data: object) -> None:
        pass

    def receive(self, size: int) -> memoryview:
        whole = self.data or b"\0"
        start = self.at % len(whole)
        self.at += size
        return memoryview((whole * (1 + (start + size) // len(whole)))[start : start + size])


def path(number: int) -> str:
    return "offline" if number == OFFLINE else f"steps/{number}"


def change_a_step(data: bytes, put: Put, ended: list[bool]) -> None:
    """Two bytes choose the step, the rest is its body, sent after the sound messages before it.
    Never a server's error; the session goes on as if it had not been, unless the message was the
    sound one."""
    number = int.from_bytes(data[:2], "little", signed=True) % (plan().requests + 2) - 1
    sound = transcript()
    before = [each for each in sound if each[0] < number]
    for which, request, answer in before:
        check(put(which, request) == (200, answer), "a sound message is answered")
    status, _ = put(number, data[2:])
    check(status in (200, 400, 409, 410, 413), f"status {status}")
    if status == 200 and (number, data[2:]) not in [each[:2] for each in sound]:
        return  # another client's right to send what it likes: the session goes its own way
    for which, request, answer in sound[len(before) :]:
        check(put(which, request) == (200, answer), "the session goes on")
    check(ended == [True], "the session ends")
