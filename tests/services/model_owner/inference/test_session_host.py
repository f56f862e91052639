"""The session host by itself: order, replay, tokens, expiry, room, and what breaks."""

from __future__ import annotations

import socket
import threading

import httpx
import numpy as np
import pytest

from primia.errors import (
    Forbidden,
    MalformedMessage,
    NotFound,
    PrimiaError,
    Unavailable,
    UnexpectedMessage,
)
from primia.messages.inference import SESSION_TOKEN_HEADER
from primia.mpc.plan import Dense, Flatten, Narrow, Plan, Relu
from services.model_owner.inference.host import OFFLINE, SessionHost
from services.model_owner.inference.listener import Listener, create_listener
from tests.support.inference import SESSION, Session, weights_for

ID = SESSION.hex()
IMAGE = np.full((1, 1, 2, 2), 0.5, np.float32)


def plan() -> Plan:
    hidden = (Flatten("flat", 0), Dense("fc", 1, 3, 6), Narrow("cut", 2, 6), Relu("relu", 3))
    ops = (*hidden, Dense("out", 4, 2, 6))
    return Plan((1, 2, 2), 8, ops)


class Held:
    """A host with one session, and its client's messages."""

    def __init__(self, **options):
        self.now = 0.0
        self.ended: list[tuple[str, bool, str]] = []
        values = {"limit": 2, "idle_seconds": 10.0, **options}
        self.host = SessionHost(
            ended=lambda *told: self.ended.append(told), clock=lambda: self.now, **values
        )
        self.parties = Session(plan(), weights_for(plan(), 5))
        self.token = self.host.open(ID, self.parties.owner)

    def send(self, number, body):
        return self.host.step(ID, self.token, number, body)

    def run(self, until=None):
        """Answer everything up to a step; (number, body, answer) of each."""
        client = self.parties.client
        body = client.offline()
        seen = [(OFFLINE, body, self.send(OFFLINE, body))]
        request = client.first(IMAGE)
        while request is not None and until != len(seen) - 2:
            number = client.request_number
            seen.append((number, request, self.send(number, request)))
            request = client.step(seen[-1][2])
        return seen


@pytest.fixture
def held():
    return Held()


def test_a_whole_session(held):
    seen = held.run()
    assert [number for number, _, _ in seen] == [OFFLINE, *range(plan().requests)]
    assert held.ended == [(ID, True, "")]
    assert held.parties.client.result().shape == (1, 2)


def test_the_last_answer_waits_for_nothing_that_follows_it():
    aside = []
    held = Held(aside=aside.append)
    number, body, answer = held.run()[-1]
    assert held.ended == []
    assert held.send(number, body) == answer
    assert held.host.sweep() == []  # it is done: its row need not be kept alive
    [follows] = aside
    follows()
    assert held.ended == [(ID, True, "")]
    assert held.send(number, body) == answer


@pytest.mark.parametrize("end", ["done", "dropped"])
def test_what_a_session_held_is_let_go_of_at_its_end(end):
    held, gone = Held(), []
    parties = Session(plan(), weights_for(plan(), 5))
    token = held.host.open("ab" * 16, parties.owner, lambda: gone.append(True))
    held.host.drop(ID, held.token, "made room")
    if end == "dropped":
        held.host.drop("ab" * 16, token, "asked")
    else:
        held.parties, held.token = parties, token
        held.send = lambda number, body: held.host.step("ab" * 16, token, number, body)
        held.run()
    assert gone == [True]


@pytest.mark.parametrize("until", [-1, 0, 1])
def test_the_latest_step_repeated_gets_the_stored_answer(held, until):
    number, body, answer = held.run(until)[-1]
    assert number == until
    for _ in range(3):
        assert held.send(number, body) == answer


@pytest.mark.parametrize("until", [-1, 0, 1])
def test_other_bytes_for_an_answered_step_are_refused(held, until):
    number, body, answer = held.run(until)[-1]
    other = body[:-1] + bytes([body[-1] ^ 1])
    with pytest.raises(UnexpectedMessage):
        held.send(number, other)
    assert held.send(number, body) == answer  # the session is as it was
    assert [told for told in held.ended if not told[1]] == []


@pytest.mark.parametrize("number", [-2, 0, 1, 2, 99])
def test_steps_out_of_order_are_refused_and_change_nothing(held, number):
    body = held.parties.client.offline()
    with pytest.raises(UnexpectedMessage):
        held.send(number, body)
    held.send(OFFLINE, body)
    assert held.ended == []


def test_a_done_session_answers_its_last_step_alone(held):
    seen = held.run()
    number, body, answer = seen[-1]
    assert held.send(number, body) == answer
    for earlier, sent, _ in seen[:-1]:
        with pytest.raises(UnexpectedMessage):
            held.send(earlier, sent)
    with pytest.raises(UnexpectedMessage):
        held.send(number, body + b"\0")


@pytest.mark.parametrize("body", [b"", b"x", b"PGIF" + bytes(40)])
def test_bytes_that_do_not_parse_change_nothing(held, body):
    with pytest.raises(MalformedMessage):
        held.send(OFFLINE, body)
    held.run()
    assert held.ended == [(ID, True, "")]


def test_tokens_and_unknown_sessions(held):
    for token in ("", held.token[:-1], held.token + "x"):
        with pytest.raises(Forbidden):
            held.host.step(ID, token, OFFLINE, b"")
    with pytest.raises(NotFound):
        held.host.step("0" * 32, held.token, OFFLINE, b"")
    with pytest.raises(Forbidden):
        held.host.drop(ID, "", "because")
    assert held.ended == []


def test_idle_sessions_end_and_busy_ones_stay(held):
    held.now = 9
    held.send(OFFLINE, held.parties.client.offline())
    held.now = 18
    assert held.host.sweep() == [ID]
    held.now = 20
    assert held.host.sweep() == []
    assert held.ended == [(ID, False, "no step came for too long")]
    with pytest.raises(NotFound):
        held.send(0, b"")


def test_a_session_whose_step_is_on_its_way_is_not_idle(held):
    for held.now in (8, 16, 24):
        held.host.touch(ID, held.token)
        assert held.host.sweep() == [ID]
    with pytest.raises(Forbidden):
        held.host.touch(ID, "another")
    held.now = 35
    assert held.host.sweep() == []


def test_a_done_session_expires_silently(held):
    number, body, _ = held.run()[-1]
    assert held.host.sweep() == []  # it needs no renewing
    held.now = 11
    held.host.sweep()
    assert held.ended == [(ID, True, "")]
    with pytest.raises(NotFound):
        held.send(number, body)


def test_room_is_bounded(held):
    other = Session(plan(), weights_for(plan(), 5))
    with pytest.raises(UnexpectedMessage):
        held.host.open(ID, other.owner)
    held.host.open("b" * 32, other.owner)
    with pytest.raises(Unavailable):
        held.host.open("c" * 32, other.owner)
    held.run()  # done: it holds its last answer only
    held.host.open("c" * 32, other.owner)


def test_what_breaks_ends_the_session_and_tells_no_values(held, monkeypatch):
    def broken(*_):
        raise ValueError("share 123456")

    monkeypatch.setattr(held.parties.owner, "step", broken)
    held.send(OFFLINE, held.parties.client.offline())
    with pytest.raises(PrimiaError) as caught:
        held.send(0, b"")
    assert "123456" not in str(caught.value)
    assert held.ended == [(ID, False, "step 0 failed (ValueError)")]
    with pytest.raises(NotFound):
        held.send(0, b"")


def test_dropped_and_closed_sessions_are_gone(held):
    held.host.drop(ID, held.token, "because")
    assert held.ended == [(ID, False, "because")]
    again = Held()
    again.host.close()
    assert [told[1] for told in again.ended] == [False]
    with pytest.raises(UnexpectedMessage):
        again.parties.owner.offline(b"")  # its material is closed


def test_the_same_step_many_times_at_once_is_taken_once(held):
    body = held.parties.client.offline()
    held.send(OFFLINE, body)
    request = held.parties.client.first(IMAGE)
    answers = []
    barrier = threading.Barrier(4)

    def send():
        barrier.wait()
        answers.append(held.send(0, request))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    assert len(set(answers)) == 1


def test_secrets_are_not_printed(held):
    assert held.token not in repr(held.host._sessions)


# -- the listener ------------------------------------------------------------------------------


@pytest.fixture
def listener(held):
    made = Listener(create_listener(held.host, 10_000), "127.0.0.1", 0)
    made.start()
    yield made
    made.stop()


def test_steps_over_the_internal_listener(held, listener):
    base = f"{listener.url}/sessions/{ID}"
    headers = {SESSION_TOKEN_HEADER: held.token}
    body = held.parties.client.offline()
    with httpx.Client() as http:
        assert http.put(f"{base}/offline", content=body).status_code == 403
        assert http.put(f"{base}/steps/x", content=body, headers=headers).status_code == 404
        early = http.put(f"{base}/steps/1", content=body, headers=headers)
        assert early.json()["type"] == "urn:primia:problem:unexpected-message"
        first = http.put(f"{base}/offline", content=body, headers=headers)
        again = http.put(f"{base}/offline", content=body, headers=headers)
        assert first.status_code == 200
        assert first.content == again.content
        large = http.put(f"{base}/steps/0", content=bytes(10_001), headers=headers)
        assert large.status_code == 413
        held.now = 5
        assert http.post(f"{base}/touch", headers=headers).status_code == 204
        assert http.post(f"{base}/touch").status_code == 403
        held.now = 14
        assert held.host.sweep() == [ID]
        unknown = f"{listener.url}/sessions/{'0' * 32}"
        assert http.delete(unknown, headers=headers).status_code == 404
        assert http.delete(base, headers=headers).status_code == 204
    assert held.ended == [(ID, False, "the data node ended it")]


def test_a_strangers_body_is_refused_before_it_is_read(listener):
    """Only the head is sent: an answer shows that nobody waits for the body."""
    address = listener.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=10) as stranger:
        head = f"PUT /sessions/{ID}/steps/0 HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n"
        stranger.sendall(head.encode())
        assert b" 403 " in stranger.recv(1024)


def test_small_answers_do_not_wait_for_acknowledgements(listener):
    """asyncio sets TCP_NODELAY only where the socket names its protocol."""
    assert listener._socket.proto != 0
