"""Downloads straight from the socket, and what a peer may do meanwhile."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from primia.chassis import direct
from primia.chassis.identity import Identity
from primia.chassis.peers import PeerClient
from primia.errors import MalformedMessage, PeerRefused, PeerUnavailable

BODY = bytes(range(256)) * 20_000


class Peer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: list  # headers of the requests

    def do_GET(self):
        type(self).seen.append(self.headers)
        if self.path.startswith("/refused"):
            self._send(403, b'{"detail": "Not yours."}', "application/problem+json")
        elif self.path.startswith("/chunked"):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(BODY), 1_000_000):
                part = BODY[at : at + 1_000_000]
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
        else:
            self._send(200, BODY, "application/octet-stream")

    def _send(self, status, body, media):
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_given):
        pass


@contextmanager
def serving():
    Peer.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Peer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    client = PeerClient(Identity.fresh("node"), "dealer", url, attempts=1)
    yield client, url
    client.close()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("path", ["/whole", "/chunked", "/whole?result=scores"])
def test_a_body_arrives_with_the_requests_token(tmp_path, path):
    pieces = []
    with serving() as (client, _):
        client.download(
            path, tmp_path / "file", len(BODY), lambda at, p: pieces.append((at, len(p)))
        )
    assert (tmp_path / "file").read_bytes() == BODY
    assert Peer.seen[0]["Authorization"].startswith("Bearer ")
    assert Peer.seen[0]["Accept-Encoding"] == "identity"
    starts = [at for at, _ in pieces]
    assert starts == [sum(size for _, size in pieces[:i]) for i in range(len(pieces))]


def test_a_refusal_is_told(tmp_path):
    with serving() as (client, _), pytest.raises(PeerRefused, match="Not yours"):
        client.download("/refused", tmp_path / "file", 10)
    assert not (tmp_path / "file").exists()


def test_more_than_announced_is_cut_off(tmp_path):
    with serving() as (client, _), pytest.raises(MalformedMessage, match="more than"):
        client.download("/whole", tmp_path / "file", 1000)


def test_less_than_announced_is_unavailable(tmp_path):
    with serving() as (client, _), pytest.raises(PeerUnavailable, match="broke off"):
        client.download("/whole", tmp_path / "file", len(BODY) + 1)


def test_a_peer_that_is_not_there_is_unavailable(tmp_path):
    client = PeerClient(Identity.fresh("node"), "dealer", "http://127.0.0.1:1", attempts=1)
    with pytest.raises(PeerUnavailable, match=r"cannot be reached \(ConnectError\)"):
        client.download("/whole", tmp_path / "file", 10)


def test_a_proxy_of_the_environment_is_used(tmp_path, monkeypatch):
    """The proxy here answers itself: what arrives shows that the request went there."""
    with serving() as (_, proxy):
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert not direct.reached_directly(httpx.URL("http://dealer.invalid/"))
        assert direct.reached_directly(httpx.URL("http://127.0.0.1:1/"))
        client = PeerClient(Identity.fresh("node"), "dealer", "http://dealer.invalid", attempts=1)
        client.download("/whole", tmp_path / "file", len(BODY))
    assert (tmp_path / "file").read_bytes() == BODY
    assert Peer.seen[0]["Host"] == "dealer.invalid"
