"""What the two clients share: a signed connection, waiting, server-sent events."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from primia.chassis.identity import Identity
from primia.chassis.peers import PeerClient
from primia.errors import MalformedMessage, Unavailable

T = TypeVar("T")
_POLL_SECONDS = 0.2
_MAX_LINE = 1 << 20


class Connection:
    """A service, as one of its users reaches it."""

    def __init__(self, identity: Identity, name: str, url: str) -> None:
        self.name = name
        self.url = url
        self.http = PeerClient(identity, name, url)

    def close(self) -> None:
        self.http.close()

    def events(self, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(kind, data) of each server-sent event, until the service ends the stream."""
        kind = "message"
        with self.http.stream(path, {"Accept": "text/event-stream"}, timeout=60) as answer:
            for line in answer.iter_lines():
                if len(line) > _MAX_LINE:
                    raise MalformedMessage(f"{self.name} sent too long an event.")
                field, _, value = line.partition(": ")
                if field == "event":
                    kind = value
                elif field == "data":
                    yield kind, _object(value, self.name)

    def read(self, path: str) -> dict[str, Any]:
        return _object(self.http.request("GET", path).text, self.name)


def _object(text: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise MalformedMessage(f"{name} sent something that is not JSON.") from error
    if not isinstance(value, dict):
        raise MalformedMessage(f"{name} sent JSON that is no object.")
    return value


def wait_for(read: Callable[[], T], done: Callable[[T], bool], seconds: float, what: str) -> T:
    """Read until it is done; raises Unavailable after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not done(value := read()):
        if time.monotonic() > deadline:
            raise Unavailable(f"{what} took longer than {seconds:.0f} s.")
        time.sleep(_POLL_SECONDS)
    return value
