"""A grid whose data node reaches the others through proxies that lose, repeat and hold messages,
and whose model owner reaches the crypto provider through one."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from primia.grid import layout
from primia.grid.layout import Grid, Member

_STEP = re.compile(r"/inference/sessions/([0-9a-f]{32})/(?:offline|steps/(\d+))")
OFFLINE = -1
# The proxy between the model owner and the crypto provider; the others are the data node's.
OWNERS_DEALER = "model-owner to crypto-provider"
_KEPT_HEADERS = ("Content-Type", "Content-Range", "Location", "Retry-After")


@dataclass(frozen=True)
class Call:
    """A request on its way; ``send`` passes it on, as often as it is called."""

    method: str
    path: str
    body: bytes
    send: Callable[..., httpx.Response]

    def step(self) -> tuple[str, int] | None:
        """(session, number) of a message of party 1, the offline message as OFFLINE."""
        found = _STEP.fullmatch(self.path)
        return (found[1], int(found[2] or OFFLINE)) if found else None


# The answer to give; None: the connection breaks off.
Rule = Callable[[Call], httpx.Response | None]


def passed_on(call: Call) -> httpx.Response | None:
    return call.send()


# What a caller says on a stream (primia.chassis.duplex), piece by piece, as it is to arrive.
Said = Callable[[Iterator[bytes]], Iterator[bytes]]


class Proxy:
    """Between two services; ``rule`` and, for streams, ``said`` may be changed at any time."""

    def __init__(self, target: str) -> None:
        self.rule: Rule = passed_on
        self.said: Said = iter
        http = httpx.Client(base_url=target, timeout=None, limits=httpx.Limits())
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                if self.path.endswith("/stream"):
                    with suppress(OSError, httpx.HTTPError):  # one of the two is dead
                        self._stream()
                    self.close_connection = True
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = self._headers()

                def send(content: bytes = body) -> httpx.Response:
                    return http.request(self.command, self.path, content=content, headers=headers)

                path = self.path.partition("?")[0]
                try:
                    answer = proxy.rule(Call(self.command, path, body, send))
                except httpx.HTTPError:  # the other side is dead
                    answer = None
                self._give(answer)

            def _headers(self) -> dict[str, str]:
                hop = ("host", "content-length", "connection", "transfer-encoding")
                return {k: v for k, v in self.headers.items() if k.lower() not in hop}

            def _stream(self) -> None:
                if self.command == "PUT":
                    pieces = proxy.said(self._pieces())
                    self._give(http.put(self.path, content=pieces, headers=self._headers()))
                    return
                with http.stream("GET", self.path, headers=self._headers()) as answer:
                    self.send_response(answer.status_code)
                    self.send_header("Content-Type", answer.headers["Content-Type"])
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    for piece in answer.iter_raw():
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    self.wfile.write(b"0\r\n\r\n")

            def _pieces(self) -> Iterator[bytes]:
                """Of a body in chunks (RFC 9112, section 7.1)."""
                while size := int(self.rfile.readline(64) or b"-1", 16):
                    data = self.rfile.read(size + 2) if size > 0 else b""
                    if len(data) != size + 2:
                        raise ConnectionError("The caller is gone.")
                    yield data[:size]

            def _give(self, answer: httpx.Response | None) -> None:
                self.close_connection = answer is None
                if answer is None:
                    return
                with suppress(OSError):  # nobody waits for it any more
                    self.send_response(answer.status_code)
                    for name in _KEPT_HEADERS:
                        if name in answer.headers:
                            self.send_header(name, answer.headers[name])
                    if answer.status_code != 204:
                        self.send_header("Content-Length", str(len(answer.content)))
                    self.end_headers()
                    self.wfile.write(answer.content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        for method in ("GET", "PUT", "POST", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.handle_any)
        self._http = http
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._http.close()


@dataclass(frozen=True)
class Routed(Grid):
    """A grid with one data node, all through proxies; ``extra``: settings by member."""

    proxies: dict[str, Proxy] = field(default_factory=dict)
    extra: dict[str, dict[str, str]] = field(default_factory=dict)

    def environment(self, member: Member, data_roots=()) -> dict[str, str]:
        values = super().environment(member, data_roots)
        if member.role == "model_owner":
            values["PRIMIA_DEALER_URL"] = self.proxies[OWNERS_DEALER].url
        if member.role == "data_node":
            values["PRIMIA_OWNER_URL"] = self.proxies[layout.OWNER].url
            values["PRIMIA_DEALER_URL"] = self.proxies[layout.DEALER].url
        return {**values, **self.extra.get(member.name, {})}


class Crowd:
    """Holds each of many jobs at another point of its way, all at once, until they are released.

    ``name(call)`` is (job, point) or None; a point is held ``before`` it reaches the other side, or
    ``after``, with its answer lost.
    """

    def __init__(
        self,
        name: Callable[[Call], tuple[str, object] | None],
        points: list[tuple[object, str]],
    ) -> None:
        self._name = name
        self._points = list(points)
        self._targets: dict[str, tuple[object, str]] = {}
        self._lock = threading.Lock()
        self._released = threading.Event()
        self.held: list[tuple[object, str]] = []

    def __call__(self, call: Call) -> httpx.Response | None:
        named = self._name(call)
        if named is None or self._released.is_set():
            return call.send()
        target = self._target(named[0])
        if (named[1], "before") == target:
            self._hold(target)
            return call.send()
        answer = call.send()
        if (named[1], "after") == target:
            self._hold(target)
            return None
        return answer

    def _target(self, job: str) -> tuple[object, str] | None:
        with self._lock:
            if job not in self._targets and self._points:
                self._targets[job] = self._points.pop(0)
            return self._targets.get(job)

    def _hold(self, target: tuple[object, str]) -> None:
        with self._lock:
            self.held.append(target)
        self._released.wait(120)

    def release(self) -> None:
        self._released.set()


class Paused:
    """Holds each of many streams at another place of what its caller says, all at once: ``places``
    are numbers of bytes that still pass."""

    def __init__(self, places: list[int]) -> None:
        self._places = list(places)
        self._lock = threading.Lock()
        self._released = threading.Event()
        self.held: list[int] = []

    def __call__(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        with self._lock:
            place = self._places.pop(0) if self._places else None
        return pieces if place is None else self._until(place, pieces)

    def _until(self, place: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
        passed, waits = 0, True
        for piece in pieces:
            if waits and passed + len(piece) > place:
                yield piece[: place - passed]
                with self._lock:
                    self.held.append(place)
                self._released.wait(120)
                waits, piece = False, piece[place - passed :]
            passed += len(piece)
            yield piece

    def release(self) -> None:
        self._released.set()
