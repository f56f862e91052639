"""HTTP clients to the other services: signed, bounded, retried where that is safe.

Idempotent calls (GET, PUT, DELETE) are repeated when the other side cannot be reached; POST never
is. A problem document becomes ``PeerRefused`` (``extra["status"]``, ``extra["problem"]``), a
connection that fails ``PeerUnavailable``.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from primia.chassis import direct
from primia.chassis.files import out_of_space_is_typed
from primia.chassis.identity import Identity
from primia.chassis.telemetry import REQUEST_ID_HEADER, current_request_id
from primia.errors import MalformedMessage, PeerRefused, PeerUnavailable

BINARY = "application/octet-stream"
_MAX_JSON = 16 << 20
_TIMEOUT = httpx.Timeout(30, connect=5)
_ATTEMPTS = 4
# Shorter than our services keep an idle connection (75 s). A new one begins slowly: over a line of
# 200 ms there and back, the first answer of a megabyte takes a second more.
_KEPT_SECONDS = 60

Body = bytes | Iterable[bytes]
Seen = Callable[[int, bytes | memoryview], None]
M = TypeVar("M", bound=BaseModel)


class SignedRequests(httpx.Auth):
    """Adds a fresh token for the audience, and the request id, to every request."""

    def __init__(self, identity: Identity, audience: str) -> None:
        self._identity = identity
        self._audience = audience

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._identity.token(self._audience)}"
        request.headers[REQUEST_ID_HEADER] = current_request_id()
        yield request


class PeerClient:
    """One other service, named by its principal. Safe to share between threads."""

    def __init__(
        self, identity: Identity, name: str, base_url: str, attempts: int = _ATTEMPTS
    ) -> None:
        self.name = name
        self._attempts = attempts
        self._signing = SignedRequests(identity, name)
        self._http = httpx.Client(
            base_url=base_url,
            auth=self._signing,
            timeout=_TIMEOUT,
            headers={"Accept-Encoding": "identity"},
            limits=httpx.Limits(
                max_connections=32, max_keepalive_connections=8, keepalive_expiry=_KEPT_SECONDS
            ),
            follow_redirects=False,
        )
        self._connections = direct.Connections()

    def request(
        self,
        method: str,
        path: str,
        *,
        message: BaseModel | None = None,
        content: Body | None = None,
        params: Mapping[str, str | int | float] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        largest: int = 0,
    ) -> httpx.Response:
        """The answer, if it is a success; repeated if idempotent and its body can be sent again.

        Raises MalformedMessage as soon as its body is over ``largest`` bytes and 16 MiB.
        """
        sent = dict(headers or {})
        if message is not None:
            content = message.model_dump_json().encode()
            sent["Content-Type"] = "application/json"
        elif content is not None:
            sent.setdefault("Content-Type", BINARY)

        def once() -> httpx.Response:
            return self._once(method, path, content, params, sent, timeout, max(largest, _MAX_JSON))

        return self._retrying(once) if _repeatable(content, method) else once()

    def _retrying(self, once: Any) -> httpx.Response:
        attempts = Retrying(
            stop=stop_after_attempt(self._attempts),
            wait=wait_random_exponential(multiplier=0.1, max=2),
            retry=retry_if_exception_type(PeerUnavailable),
            reraise=True,
        )
        answer: httpx.Response = attempts(once)
        return answer

    def _once(
        self,
        method: str,
        path: str,
        content: Body | None,
        params: Mapping[str, str | int | float] | None,
        headers: Mapping[str, str],
        timeout: float | None,
        largest: int,
    ) -> httpx.Response:
        request = self._http.build_request(
            method, path, content=content, params=params, headers=headers, timeout=_limit(timeout)
        )
        with self._sent(request, content) as answer:
            return self._accepted(self._whole(answer, largest))

    @contextlib.contextmanager
    def _sent(self, request: httpx.Request, content: Body | None = None) -> Iterator[direct.Answer]:
        """Whatever the answer is. Raises PeerUnavailable, here and where its body is read."""
        with self._errors_are_typed():
            if _repeatable(content, request.method) and direct.reached_directly(request.url):
                next(self._signing.auth_flow(request))
                with self._connections.sent(request, content) as answer:
                    yield answer
                return
            sent = self._http.send(request, stream=True)
            with contextlib.closing(sent):
                media = sent.headers.get("Content-Type", "")
                yield direct.Answer(sent.status_code, media, sent.iter_raw())

    def _whole(self, answer: direct.Answer, largest: int) -> httpx.Response:
        """The answer with its body in memory, as it is on the wire: no decompression."""
        pieces, size = [], 0
        for piece in answer.pieces:
            pieces.append(piece)
            size += len(piece)
            if size > largest:
                raise MalformedMessage(f"{self.name} answered with more than {largest} bytes.")
        media = {"Content-Type": answer.media}
        return httpx.Response(answer.status, headers=media, content=b"".join(pieces))

    @contextlib.contextmanager
    def _errors_are_typed(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise PeerUnavailable(
                f"{self.name} cannot be reached ({type(error).__name__}).",
                hint="Is it running, and is its address right?",
            ) from error

    def _accepted(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        problem = _problem(answer)
        if answer.status_code in (502, 503, 504):
            raise PeerUnavailable(
                f"{self.name} is not available at present: {_told(problem, answer)}",
                problem=problem,
                status_of_peer=answer.status_code,
            )
        raise PeerRefused(
            f"{self.name} refused: {_told(problem, answer)}",
            problem=problem,
            status_of_peer=answer.status_code,
        )

    def get(
        self,
        path: str,
        model: type[M],
        *,
        params: Mapping[str, str | int | float] | None = None,
        timeout: float | None = None,
    ) -> M:
        return self.parse(self.request("GET", path, params=params, timeout=timeout), model)

    def parse(self, answer: httpx.Response, model: type[M]) -> M:
        """The body as a message; raises MalformedMessage if it is anything else."""
        if len(answer.content) > _MAX_JSON:
            raise MalformedMessage(f"{self.name} answered with too large a body.")
        try:
            return model.model_validate_json(answer.content)
        except ValidationError as error:
            raise MalformedMessage(
                f"{self.name} answered with something that is no {model.__name__}."
            ) from error

    def put(self, path: str, message: BaseModel, timeout: float | None = None) -> httpx.Response:
        return self.request("PUT", path, message=message, timeout=timeout)

    def post(self, path: str, message: BaseModel, timeout: float | None = None) -> httpx.Response:
        return self.request("POST", path, message=message, timeout=timeout)

    def delete(self, path: str) -> httpx.Response:
        return self.request("DELETE", path)

    @contextlib.contextmanager
    def stream(
        self, path: str, headers: Mapping[str, str] | None = None, timeout: float | None = None
    ) -> Iterator[httpx.Response]:
        """A GET whose body is read piece by piece."""
        with (
            self._errors_are_typed(),
            self._http.stream("GET", path, headers=headers, timeout=_limit(timeout)) as answer,
        ):
            if not answer.is_success:
                media = answer.headers.get("Content-Type", "")
                told = direct.Answer(answer.status_code, media, answer.iter_raw())
                self._accepted(self._whole(told, _MAX_JSON))
            yield answer

    def download(self, path: str, target: Path, size: int, seen: Seen | None = None) -> None:
        """Fetch exactly ``size`` bytes into ``target``, going on where an earlier try broke off.

        ``seen`` is told of every piece: at which byte of the file it lies, and its bytes.
        """

        def once() -> None:
            at = target.stat().st_size if target.exists() else 0
            if at < size:
                self._append(path, target, at, size, seen)

        self._retrying(once)
        if target.stat().st_size != size:
            raise MalformedMessage(f"{self.name} sent a file of another size than announced.")

    def _append(self, path: str, target: Path, at: int, size: int, seen: Seen | None) -> None:
        headers = {"Range": f"bytes={at}-"} if at else {}
        request = self._http.build_request("GET", path, headers=headers)
        with self._sent(request) as answer:
            if not 200 <= answer.status < 300:
                self._accepted(self._whole(answer, _MAX_JSON))
            if at and answer.status != 206:
                at = 0
            with out_of_space_is_typed(), target.open("ab" if at else "wb") as file:
                for piece in answer.pieces:
                    if at + len(piece) > size:
                        raise MalformedMessage(f"{self.name} sends more than the {size} bytes.")
                    file.write(piece)
                    if seen is not None:
                        seen(at, piece)
                    at += len(piece)
        if at < size:
            raise PeerUnavailable(f"{self.name} broke off a download.")

    def close(self) -> None:
        self._http.close()
        self._connections.close()


class Peers:
    """The clients of this process, one for each service it speaks to."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._clients: dict[tuple[str, str], PeerClient] = {}
        self._lock = threading.Lock()

    def client(self, name: str, base_url: str) -> PeerClient:
        with self._lock:
            key = (name, base_url)
            if key not in self._clients:
                self._clients[key] = PeerClient(self._identity, name, base_url)
            return self._clients[key]

    def asynchronous(self, name: str, base_url: str) -> httpx.AsyncClient:
        """For coroutines that wait long; the caller closes it and handles httpx's errors."""
        return httpx.AsyncClient(
            base_url=base_url, auth=SignedRequests(self._identity, name), timeout=_TIMEOUT
        )

    def close(self) -> None:
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()


def _repeatable(content: Body | None, method: str) -> TypeGuard[bytes | None]:
    return method != "POST" and (content is None or isinstance(content, bytes))


def _limit(seconds: float | None) -> httpx.Timeout:
    return _TIMEOUT if seconds is None else httpx.Timeout(seconds, connect=5)


def _problem(answer: httpx.Response) -> dict[str, Any]:
    if "json" not in answer.headers.get("Content-Type", "") or len(answer.content) > _MAX_JSON:
        return {}
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _told(problem: Mapping[str, Any], answer: httpx.Response) -> str:
    detail = problem.get("detail")
    if isinstance(detail, str) and detail:
        return detail[:500]
    return f"status {answer.status_code}."
