"""A half comes over HTTP: whole or in pieces of two connections, true or damaged."""

import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from primia.chassis.halves import fetch_half
from primia.chassis.identity import Identity
from primia.chassis.peers import PeerClient
from primia.errors import MalformedMessage
from primia.mpc.operations import Convolution, Flatten, Relu
from primia.mpc.plan import Plan
from tests.support.inference import dealt, seed

LAYER = Convolution("c", 0, 2, (3, 3), (1, 1), (1, 1), 1, 4)
PLAN = Plan((1, 40, 40), 4, (LAYER, Relu("r", 1), Flatten("f", 2)), "scores")


class Dealer(BaseHTTPRequestHandler):
    """Hands out ``half``; the first ``breaks`` connections end in the middle of what is left."""

    half = b""
    breaks = 0

    def do_GET(self):
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        rest = self.half[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if type(self).breaks:
            type(self).breaks -= 1
            rest = rest[: len(rest) // 2]
        self.wfile.write(rest)
        self.close_connection = True

    def log_message(self, *_given):
        pass


@pytest.fixture
def client():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dealer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    made = PeerClient(Identity.fresh("node"), "dealer", f"http://127.0.0.1:{server.server_port}")
    yield made
    made.close()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def material():
    return dealt(PLAN, 2, seed(1), seed(2))


@pytest.mark.parametrize("party", [0, 1])
@pytest.mark.parametrize("breaks", [0, 1, 2])
def test_a_half_arrives_also_in_several_connections(client, material, tmp_path, party, breaks):
    Dealer.half, Dealer.breaks = material.half(party), breaks
    target = tmp_path / "half"
    fetch_half(client, "d", target, material.manifest, PLAN, 2, party)
    assert target.read_bytes() == material.half(party)


def test_what_an_earlier_process_fetched_is_verified_too(client, material, tmp_path):
    Dealer.half, Dealer.breaks = material.half(1), 0
    target = tmp_path / "half"
    target.write_bytes(material.half(1)[:5000])
    fetch_half(client, "d", target, material.manifest, PLAN, 2, 1)
    assert target.read_bytes() == material.half(1)
    target.write_bytes(bytes(5000))
    with pytest.raises(MalformedMessage, match="damaged"):
        fetch_half(client, "d", target, material.manifest, PLAN, 2, 1)


@pytest.mark.parametrize("at", [0, -1])
def test_a_changed_byte_of_either_part_is_noticed(client, material, tmp_path, at):
    changed = bytearray(material.half(0))
    changed[at] ^= 1
    Dealer.half, Dealer.breaks = bytes(changed), 0
    with pytest.raises(MalformedMessage, match="damaged"):
        fetch_half(client, "d", tmp_path / "half", material.manifest, PLAN, 2, 0)


def test_the_other_partys_digest_does_not_do(client, material, tmp_path):
    Dealer.half, Dealer.breaks = material.half(0), 0
    manifest = replace(material.manifest, p0=material.manifest.p1)
    with pytest.raises(MalformedMessage, match="damaged"):
        fetch_half(client, "d", tmp_path / "half", manifest, PLAN, 2, 0)
