"""Streams between two services: bytes in order, both ways at once, and how they end."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import uvicorn
from fastapi import APIRouter, Depends, Request
from sqlalchemy import MetaData

from primia.chassis import stream_host
from primia.chassis.app import create_app
from primia.chassis.auth import require
from primia.chassis.duplex import CalledStream, Inbox, ServedStream, require_joined
from primia.chassis.identity import Principal
from primia.chassis.peers import PeerClient
from primia.chassis.service import Service
from primia.chassis.settings import ServiceSettings
from primia.chassis.stream_host import StreamHost
from primia.errors import Conflict, NotFound, PeerUnavailable, Unavailable
from tests.support.servers import free_port, wait_until

NAME, CALLER = "model-owner", "node-a"
SIZES = (1, 1000, 1 << 20, 3_000_001)


class Echo:
    """A service with one stream: says twice what it hears, until 0 comes."""

    def __init__(self):
        self.stream = ServedStream(10)
        self.failed = ""

    def routes(self):
        router = APIRouter()

        @router.put("/stream", status_code=204)
        async def hear(request: Request, _c: Annotated[Principal, Depends(require("data_node"))]):
            return await stream_host.upload(request, self.stream)

        @router.get("/stream")
        def say(_c: Annotated[Principal, Depends(require("data_node"))]):
            return stream_host.download(self.stream)

        return router

    def work(self):
        try:
            for size in SIZES:
                heard = np.frombuffer(self.stream.receive(size), np.uint8)
                self.stream.send(heard)
                self.stream.send(heard[::-1].copy())
        except PeerUnavailable as error:
            self.failed = error.detail
        self.stream.close()


@pytest.fixture
def echo(cast, broker_url):
    made, port = Echo(), free_port()
    # A body over this limit is refused; a stream is not counted.
    ctx = cast.context("demo", NAME, ServiceSettings, broker_url, max_body_bytes=1024)
    app = create_app(
        Service("demo", "Demo", "", ServiceSettings, MetaData(), Path(), [made.routes()], {}, {}),
        ctx,
    )
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, access_log=False))
    serving = threading.Thread(target=server.run, daemon=True)
    serving.start()
    wait_until(lambda: server.started, what="the service's start")
    made.peer = PeerClient(cast.identities[CALLER], NAME, f"http://127.0.0.1:{port}")
    yield made
    made.peer.close()
    server.should_exit = True
    serving.join(10)


def test_bytes_come_whole_and_in_order_both_ways(echo):
    worker = threading.Thread(target=echo.work)
    worker.start()
    with CalledStream(echo.peer, "/stream", 10) as stream:
        require_joined(echo.stream, 10)
        sent = [np.random.default_rng(size).integers(0, 256, size, np.uint8) for size in SIZES]
        for data in sent:
            stream.send(data)  # nobody waits: all of it is on its way before any of it is read
        for data in sent:
            # In other pieces than they were sent in.
            both = stream.receive(data.size // 2).tobytes()
            both += stream.receive(2 * data.size - data.size // 2).tobytes()
            assert both == data.tobytes() + data[::-1].tobytes()
        assert (stream.sent, stream.received) == (sum(SIZES), 2 * sum(SIZES))
    worker.join(10)
    assert echo.failed == ""


def test_the_callers_end_ends_the_other_side(echo):
    worker = threading.Thread(target=echo.work)
    worker.start()
    with CalledStream(echo.peer, "/stream", 10) as stream:
        stream.send(np.zeros(500, np.uint8))
        require_joined(echo.stream, 10)
    worker.join(10)
    assert "ended" in echo.failed


def test_the_served_end_ends_the_caller(echo):
    with CalledStream(echo.peer, "/stream", 10) as stream:
        require_joined(echo.stream, 10)
        echo.stream.send(np.arange(5, dtype=np.uint8))
        echo.stream.close()
        assert stream.receive(5).tolist() == [0, 1, 2, 3, 4]
        with pytest.raises(PeerUnavailable, match="ended"):
            stream.receive(1)


def test_an_address_without_a_stream_is_told(echo):
    with (
        CalledStream(echo.peer, "/nothing", 10) as stream,
        pytest.raises(PeerUnavailable, match="refused"),
    ):
        stream.receive(1)


def test_silence_is_not_waited_for_for_ever():
    stream = ServedStream(patience=0.05)
    with pytest.raises(PeerUnavailable, match="silent"):
        stream.receive(1)
    with pytest.raises(Unavailable, match="in time"):
        require_joined(stream, 0.01)


def test_an_inbox_says_when_it_holds_too_much():
    inbox = Inbox(patience=0.05)
    inbox.put(bytes(64 << 20))
    assert not inbox.full
    inbox.put(b"x")
    assert inbox.full
    assert len(inbox.take(64 << 20)) == 64 << 20
    assert not inbox.full
    inbox.end("enough")
    inbox.put(bytes(10))  # nobody reads any more: nothing is kept
    assert bytes(inbox.take(1)) == b"x"
    with pytest.raises(PeerUnavailable, match="enough"):
        inbox.take(1)


def test_a_host_keeps_no_more_than_it_may_and_forgets_what_has_ended():
    host, going = StreamHost(3, 2), threading.Event()
    streams = [{"node-a": ServedStream(1)} for _ in range(3)]
    opened = [host.open("node-a", given, going.wait) for given in streams[:2]]
    with pytest.raises(Unavailable):
        host.open("node-a", streams[2], going.wait)
    host.open("node-b", streams[2], going.wait)
    with pytest.raises(Unavailable):
        host.open("node-c", {}, going.wait)
    assert host.stream(opened[0], "node-a") is streams[0]["node-a"]
    for session, caller in ((opened[0], "node-b"), ("0" * 32, "node-a")):
        with pytest.raises(NotFound):
            host.stream(session, caller)
    going.set()
    wait_until(lambda: host.busy == 0, 10, "the sessions' end")
    with pytest.raises(NotFound):
        host.stream(opened[0], "node-a")


@pytest.mark.parametrize("error", [Conflict("This does not fit."), RuntimeError("share=123456")])
def test_work_that_breaks_ends_its_streams_and_tells_no_value(error, caplog):
    def work():
        raise error

    host, stream = StreamHost(1, 1), ServedStream(10)
    host.open("node-a", {"node-a": stream}, work)
    with pytest.raises(PeerUnavailable) as told:
        stream.receive(1)
    assert "123456" not in str(told.value) + caplog.text


def test_a_slow_line_is_not_silence():
    """Patience is for the next bytes, not for all of them."""
    inbox = Inbox(0.5)

    def drip():
        for _ in range(30):
            time.sleep(0.05)
            inbox.put(b"12345")

    feeder = threading.Thread(target=drip)
    feeder.start()
    assert bytes(inbox.take(150)) == b"12345" * 30  # after a second and a half
    feeder.join()
    with pytest.raises(PeerUnavailable, match="fell silent"):
        inbox.take(1)


def test_a_second_reader_is_refused_before_its_answer_begins():
    stream = ServedStream(1)
    stream.pieces()
    with pytest.raises(Conflict, match="in use"):
        stream.pieces()
