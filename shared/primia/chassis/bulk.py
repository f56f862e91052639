"""Large bodies straight from the socket: read into one buffer, not copied through an HTTP library.

It takes half the processor time. Used where a peer is reached directly; through a proxy, httpx
does it.
"""

from __future__ import annotations

import http.client
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import httpx

_PIECE = 1 << 20
_SECONDS = 30


@dataclass(frozen=True)
class Body:
    """An answer whose body has not been read yet."""

    status: int
    media: str
    _answer: http.client.HTTPResponse

    def pieces(self) -> Iterator[memoryview]:
        """Each is valid until the next is asked for."""
        space = memoryview(bytearray(_PIECE))
        while size := self._read_into(space):
            yield space[:size]

    def _read_into(self, space: memoryview) -> int:
        with _network_errors():
            return self._answer.readinto(space)

    def read(self, most: int) -> bytes:
        with _network_errors():
            return self._answer.read(most)


def reached_directly(url: httpx.URL) -> bool:
    """No proxy of the environment stands between, as httpx would use it."""
    proxies = urllib.request.getproxies()
    named = proxies.get(url.scheme) or proxies.get("all")
    return not named or bool(urllib.request.proxy_bypass(url.host))


@contextmanager
def opened(request: httpx.Request) -> Iterator[Body]:
    """Send a request without a body. This and reading the body raise httpx's network errors."""
    url = request.url
    with closing(_connection(url)) as connection:
        with _network_errors():
            path = url.raw_path.decode("ascii")
            connection.request(request.method, path, headers=dict(request.headers))
            answer = connection.getresponse()
        yield Body(answer.status, answer.headers.get("Content-Type", ""), answer)


@contextmanager
def _network_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise httpx.NetworkError(type(error).__name__) from error


def _connection(url: httpx.URL) -> http.client.HTTPConnection:
    if url.scheme == "https":
        trusted = httpx.create_ssl_context()  # the authorities that other requests trust
        return http.client.HTTPSConnection(url.host, url.port, timeout=_SECONDS, context=trusted)
    return http.client.HTTPConnection(url.host, url.port, timeout=_SECONDS)
