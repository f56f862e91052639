"""Requests to peers that no proxy stands before: bodies come from the socket as they are.

A request of half a megabyte and its answer take a quarter of the processor time that they take
through httpx, half a gigabyte half of it.
"""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import urllib3
from urllib3 import exceptions
from urllib3.connection import HTTPConnection

_PIECE = 1 << 20
_CONNECTIONS = 8
# Of idle connections, so that no device on the way forgets them, and one that is gone is noticed.
_PROBES = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


@dataclass(frozen=True)
class Answer:
    """``pieces``: of the body as it is on the wire, read as they are asked for."""

    status: int
    media: str
    pieces: Iterator[bytes]


def reached_directly(url: httpx.URL) -> bool:
    """No proxy of the environment stands between, as httpx would use it."""
    proxies = urllib.request.getproxies()
    named = proxies.get(url.scheme) or proxies.get("all")
    return not named or bool(urllib.request.proxy_bypass(url.host))


class Connections:
    """Kept connections to peers; threads may share them. For requests that may be repeated: a peer
    may close a kept connection in the moment in which it is used."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: urllib3.PoolManager | None = None

    @contextmanager
    def sent(self, request: httpx.Request, body: bytes | None) -> Iterator[Answer]:
        """This and reading raise httpx's network errors."""
        wait = request.extensions["timeout"]
        with _network_errors():
            answer = self._opened().request(
                request.method,
                str(request.url),
                body=body,
                headers=dict(request.headers),
                timeout=urllib3.Timeout(connect=wait["connect"], read=wait["read"]),
                retries=False,
                redirect=False,
                preload_content=False,
            )
        try:
            yield Answer(answer.status, answer.headers.get("Content-Type", ""), _pieces(answer))
        finally:
            answer.close()  # the connection as well, unless all of the body was read

    def _opened(self) -> urllib3.PoolManager:
        with self._lock:
            if self._pool is None:
                # The authorities that other requests trust.
                trusted = httpx.create_ssl_context()
                self._pool = urllib3.PoolManager(
                    maxsize=_CONNECTIONS, ssl_context=trusted, socket_options=_socket_options()
                )
            return self._pool

    def close(self) -> None:
        with self._lock:
            if self._pool is not None:
                self._pool.clear()


def _pieces(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    with _network_errors():
        yield from answer.stream(_PIECE, decode_content=False)


def _socket_options() -> list[tuple[int, int, int]]:
    kept = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in _PROBES.items():
        if hasattr(socket, name):  # not everywhere
            kept.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return [*HTTPConnection.default_socket_options, *kept]


@contextmanager
def _network_errors() -> Iterator[None]:
    try:
        yield
    except (exceptions.NewConnectionError, exceptions.ConnectTimeoutError) as error:
        raise httpx.ConnectError(type(error).__name__) from error
    except exceptions.TimeoutError as error:
        raise httpx.ReadTimeout(type(error).__name__) from error
    except (OSError, exceptions.HTTPError) as error:
        raise httpx.NetworkError(type(error).__name__) from error
