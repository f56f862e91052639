"""What a peer may send us: bounded while it is read, never decompressed."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from primia.chassis.identity import Identity
from primia.chassis.peers import PeerClient
from primia.errors import MalformedMessage, PeerRefused, PeerUnavailable

MIB = 1 << 20


class _Peer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    sent = 0
    connections = 0

    def setup(self) -> None:
        super().setup()
        type(self).connections += 1

    def do_GET(self) -> None:
        answers = {
            "/endless": self._endless,
            "/bomb": self._bomb,
            "/no": self._refuse,
            "/nothing": self._nothing,
            "/head": self._endless_head,
            "/closed": self._close,
        }
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answers[self.path]()

    def do_PUT(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def _nothing(self) -> None:
        self.send_response(204)
        self.end_headers()

    def _endless_head(self) -> None:
        """Of a chunk: its size, in ever more digits."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(64):
            try:
                self.wfile.write(b"0" * MIB)
            except OSError:
                return
            type(self).sent += MIB

    def _close(self) -> None:
        """After the answer, and without a word of it."""
        self._bomb()
        self.close_connection = True

    def _endless(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        for _ in range(200):
            try:
                self.wfile.write(bytes(MIB))
            except OSError:
                return
            type(self).sent += MIB

    def _bomb(self) -> None:
        body = gzip.compress(bytes(64 * MIB))
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self) -> None:
        body = b'{"detail": "Not for you."}'
        self.send_response(403)
        self.send_header("Content-Type", "application/problem+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_given: object) -> None:
        pass


@pytest.fixture
def client() -> Iterator[PeerClient]:
    _Peer.sent = _Peer.connections = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Peer)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    made = PeerClient(Identity.fresh("node-a"), "owner", f"http://127.0.0.1:{server.server_port}")
    yield made
    made.close()
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_endless_answer_is_cut_off(client):
    with pytest.raises(MalformedMessage, match="more than 16777216 bytes"):
        client.request("GET", "/endless")
    assert _Peer.sent < 64 * MIB


def test_a_chunk_without_end_of_its_head_is_cut_off(client, monkeypatch):
    monkeypatch.setattr(client, "_attempts", 1)
    with pytest.raises(PeerUnavailable):
        client.request("GET", "/head")
    assert _Peer.sent < 16 * MIB


def test_an_answer_may_be_as_large_as_expected(client):
    with pytest.raises(MalformedMessage, match="more than 25165824 bytes"):
        client.request("GET", "/endless", largest=24 * MIB)


def test_a_compressed_answer_is_not_unpacked(client):
    assert len(client.request("GET", "/bomb").content) < MIB


def test_the_reason_of_a_refusal_is_told(client):
    with pytest.raises(PeerRefused, match="Not for you"):
        client.request("GET", "/no")


@pytest.mark.parametrize(("idle", "connections"), [(30, 1), (61, 2)])
def test_a_connection_for_what_is_not_repeated_is_kept_for_a_minute(
    client, monkeypatch, idle, connections
):
    """A new one begins slowly, which costs seconds on a long line."""
    client.request("POST", "/nothing")
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + idle)
    monkeypatch.setattr("httpcore._sync.http11.time", later)
    client.request("POST", "/nothing")
    assert _Peer.connections == connections


def test_whatever_the_answer_its_connection_is_used_again(client):
    for method, path in (("GET", "/bomb"), ("PUT", "/nothing"), ("GET", "/no"), ("PUT", "/no")):
        with contextlib.suppress(PeerRefused):
            client.request(method, path, content=bytes(MIB) if method == "PUT" else None)
    assert _Peer.connections == 1


def test_a_connection_whose_answer_was_not_read_is_not_used_again(client):
    with pytest.raises(MalformedMessage):
        client.request("GET", "/endless")
    assert client.request("PUT", "/nothing", content=b"x").status_code == 204
    assert _Peer.connections == 2


def test_a_kept_connection_that_the_peer_has_closed_is_replaced(client):
    client.request("GET", "/closed")
    time.sleep(0.1)
    assert len(client.request("GET", "/bomb").content) < MIB
    assert _Peer.connections == 2


def test_a_peer_that_keeps_silent_is_unavailable():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        client = PeerClient(Identity.fresh("node-a"), "owner", url, attempts=1)
        with pytest.raises(PeerUnavailable, match="ReadTimeout"):
            client.request("PUT", "/", content=b"x", timeout=0.1)
        client.close()
