"""Files fetched for a user: kept, and taken only whole and right."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from primia.cli.downloads import cache_folder, download_once
from primia.errors import InvalidInput, PeerUnavailable

DATA = b"weights" * 1000
NAME = f"resnet18-{hashlib.sha256(DATA).hexdigest()[:8]}.pth"


@pytest.fixture
def site(monkeypatch, tmp_path):
    """site.asked: the paths that were asked for; site.address."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    class Site(BaseHTTPRequestHandler):
        def do_GET(self):
            self.asked.append(self.path)
            known = self.path.startswith("/models/")
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()
            self.wfile.write(DATA)

        def log_message(self, *_):
            pass

    Site.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Site.address = f"http://127.0.0.1:{server.server_port}"
    yield Site
    server.shutdown()
    server.server_close()


def test_a_file_is_fetched_once(site):
    for _ in range(2):
        path = download_once(f"{site.address}/models/{NAME}")
        assert (path.name, path.read_bytes()) == (NAME, DATA)
    assert site.asked == [f"/models/{NAME}"]


@pytest.mark.parametrize(
    ("path", "error", "word"),
    [
        ("/models/resnet18-00000000.pth", InvalidInput, "hash"),
        (f"/nowhere/{NAME}", PeerUnavailable, "could not be fetched"),
    ],
)
def test_what_is_wrong_or_missing_leaves_nothing(site, path, error, word):
    with pytest.raises(error, match=word):
        download_once(site.address + path)
    assert list(cache_folder().iterdir()) == []


def test_a_file_over_the_limit_is_not_taken(site, monkeypatch):
    monkeypatch.setattr("primia.cli.downloads.MAX_FILE_BYTES", 100)
    with pytest.raises(InvalidInput, match="more than"):
        download_once(f"{site.address}/models/{NAME}")
    assert list(cache_folder().iterdir()) == []
