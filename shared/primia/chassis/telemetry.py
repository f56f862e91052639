"""Structured logs (one JSON object a line) and Prometheus metrics, with a request id throughout."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from primia.prg import fresh_bytes

REQUEST_ID_HEADER = "X-Request-ID"
_REQUEST_ID_LIMIT = 64
_request_id: ContextVar[str | None] = ContextVar("primia_request_id", default=None)


def get_logger(name: str) -> FilteringBoundLogger:
    logger: FilteringBoundLogger = structlog.get_logger(module=name)
    return logger


def configure_logging(service: str, level: str) -> None:
    """Route structlog and the standard library's loggers to standard error as JSON lines."""

    def stamp(_logger: object, _method: str, event: EventDict) -> EventDict:
        event["service"] = service
        if (request_id := _request_id.get()) is not None:
            event["request_id"] = request_id
        return event

    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        stamp,
    ]
    structlog.configure(
        processors=[
            *shared,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        # A line in one write: threads and processes share a log without mixing their lines.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # httpx logs every URL at INFO; a peer's path may carry identifiers, and our own log has them.
    for noisy in ("httpx", "httpcore", "uvicorn.access", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def current_request_id() -> str:
    """The request id of this context; a fresh one where none has come in."""
    request_id = _request_id.get()
    if request_id is None:
        request_id = fresh_bytes(8).hex()
        _request_id.set(request_id)
    return request_id


@contextlib.contextmanager
def request_scope(request_id: str | None) -> Iterator[str]:
    """Work under a request id: the caller's, if it is short and printable, else a new one."""
    usable = request_id and len(request_id) <= _REQUEST_ID_LIMIT and request_id.isascii()
    value = request_id if usable and request_id and request_id.isprintable() else None
    token = _request_id.set(value or fresh_bytes(8).hex())
    try:
        yield current_request_id()
    finally:
        _request_id.reset(token)


class Metrics:
    """The metrics of one process, prefixed ``primia_``; asking twice gives the same one."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        self._lock = threading.Lock()
        self.requests = self.counter("http_requests", "Requests answered", ("method", "status"))
        self.seconds = self.histogram("http_request_seconds", "Time to answer", ("method",))
        self.tasks = self.counter("tasks", "Tasks ended", ("task", "outcome"))

    def counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        with self._lock:
            if name not in self._counters:
                made = Counter(f"primia_{name}", text, labels, registry=self.registry)
                self._counters[name] = made
            return self._counters[name]

    def gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        with self._lock:
            if name not in self._gauges:
                made = Gauge(f"primia_{name}", text, labels, registry=self.registry)
                self._gauges[name] = made
            return self._gauges[name]

    def histogram(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Histogram:
        with self._lock:
            if name not in self._histograms:
                made = Histogram(f"primia_{name}", text, labels, registry=self.registry)
                self._histograms[name] = made
            return self._histograms[name]
