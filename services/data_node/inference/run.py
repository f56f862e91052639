"""Party 1 over HTTP: one attempt at an inference, from the deal to the result."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from primia.chassis.context import Context
from primia.errors import (
    MalformedMessage,
    PeerError,
    PeerRefused,
    PeerUnavailable,
    UnexpectedMessage,
)
from primia.fss import kernels
from primia.learning.images import normalise
from primia.messages.inference import Cost, ServedPlan, Session, SessionRequest
from primia.mpc.client import Client
from primia.mpc.frames import offline_size, request_size, response_size
from primia.mpc.material import Half, half_size
from primia.mpc.plan import Plan
from services.data_node.inference import kept, material, served, store
from services.data_node.inference.patience import patiently

_WAIT_SECONDS = 10
# For the model owner to prepare a session, and for its half to reach it over 1 Mbit/s; it gives up
# sooner where nothing comes.
_SESSION_SECONDS = 600
_SLOWEST_BYTES_PER_SECOND = 125_000

Values = NDArray[np.float64] | NDArray[np.int64]


@dataclass
class Report:
    """Told of progress. ``opened``: identifiers to burn if this attempt breaks; ``go_on`` raises
    where the inference was cancelled or the process is to end; ``waits``: for what reason."""

    opened: Callable[[str, str | None], None]
    progress: Callable[[str, int, int, Cost], None]
    go_on: Callable[[], None]
    waits: Callable[[str], None]
    cost: dict[str, float] = field(default_factory=dict)
    phase: str = "material"
    _since: float = field(default_factory=time.monotonic)

    def begin(self, phase: str) -> None:
        self._close()
        self.phase = phase
        self.tell(0, 0)

    def add(self, size: int) -> None:
        self._add("bytes", size)

    def tell(self, step: int, steps: int) -> None:
        self.progress(self.phase, step, steps, self.total())

    def total(self) -> Cost:
        self._close()
        return Cost.model_validate(self.cost)

    def _close(self) -> None:
        now = time.monotonic()
        self._add("seconds", now - self._since)
        self._since = now

    def _add(self, unit: str, value: float) -> None:
        key = f"{self.phase}_{unit}"
        self.cost[key] = self.cost.get(key, 0) + value


def attempt(
    ctx: Context, row: store.Inference, pixels: NDArray[np.uint8], report: Report
) -> Values:
    """``pixels``: uint8 (N, C, H, W). Returns scores (N, classes) or labels (N,).

    Any exception means that the deal and the session that were ``opened`` are to be burned.
    """
    model, wanted = row.model_served(), row.plan()
    batch = len(pixels)
    report.begin("material")
    prepared = served.prepared(ctx, model, wanted)
    report.add(prepared.fetched)
    given = _material(ctx, wanted, prepared.plan, batch, report)
    session, half = given.session, given.half
    evaluator = kernels.evaluator(ctx.settings.kernel, ctx.settings.threads)
    unmap = half.hold()
    client = Client(prepared.opening, half, bytes.fromhex(session.id), evaluator)
    try:
        report.begin("offline")
        if given.share is not None:
            client.restore(given.share)
            body = None
        else:
            body = client.offline()  # while the model owner fetches its half
        _until_ready(ctx, session, report.go_on, half_size(prepared.plan, batch, 0))
        if body is not None:
            served.owner(ctx).request("PUT", f"{_path(session)}/offline", content=body)
            report.add(offline_size(prepared.plan, batch))
        report.begin("online")
        return _online(ctx, session, client, normalised(row, pixels), report, prepared.plan)
    finally:
        client.close()
        threading.Thread(target=unmap).start()  # the result need not wait for it


@dataclass(frozen=True, repr=False)
class _Material:
    """``share``: of the result, where the offline message was sent ahead."""

    session: Session
    half: Half
    share: bytes | None = None


def _material(
    ctx: Context, wanted: ServedPlan, plan: Plan, batch: int, report: Report
) -> _Material:
    """A session and this node's half: of a prefetched deal, or of a new one."""
    ahead = kept.take(ctx, wanted.plan, plan, batch)
    if ahead is not None:
        report.opened(ahead.deal, ahead.session)
        session = _ask_session(ctx, wanted, ahead.deal, batch, report)
        if ahead.session not in (None, session.id):
            raise MalformedMessage("The model owner opened another session for a kept deal.")
        ahead.half.load()  # while the model owner opens the session
        return _Material(session, ahead.half, ahead.share)
    deal = material.reserve(ctx, wanted, batch, report.go_on, waits=report.waits)
    report.opened(deal.id, None)
    deal = material.until_reserved(ctx, deal, report.go_on)
    session = _ask_session(ctx, wanted, deal.id, batch, report)
    try:
        half = material.fetch(ctx, deal, plan, batch)
    except PeerRefused as error:
        raise _cause(ctx, session, error) from error
    report.add(deal.bytes or 0)
    return _Material(session, half)


def _cause(ctx: Context, session: Session, refused: PeerRefused) -> PeerError:
    """Why the deal is gone, where the model owner burned it when its side broke."""
    with contextlib.suppress(PeerError):
        found = served.owner(ctx).get(_path(session), Session)
        if found.state == "failed":
            return _ended(found)
    return refused


def _ended(session: Session) -> UnexpectedMessage:
    return UnexpectedMessage(f"The session is {session.state}: {session.reason}")


def _path(session: Session) -> str:
    return f"/inference/sessions/{session.id}"


def _ask_session(
    ctx: Context, wanted: ServedPlan, deal: str, batch: int, report: Report
) -> Session:
    """Asked for before this node's half is fetched: both halves come at the same time."""
    request = SessionRequest(plan=wanted.plan, digest=wanted.digest, deal=deal, batch=batch)
    owner = served.owner(ctx)
    answer = patiently(
        lambda: owner.post("/inference/sessions", request), report.go_on, waits=report.waits
    )
    session = owner.parse(answer, Session)
    if session.deal != deal:
        raise MalformedMessage("The model owner opened a session for another deal.")
    report.opened(deal, session.id)
    return session


def _until_ready(ctx: Context, session: Session, go_on: Callable[[], None], size: int) -> None:
    """``size``: bytes of the model owner's half."""
    deadline = time.monotonic() + _SESSION_SECONDS + size / _SLOWEST_BYTES_PER_SECOND
    while session.state == "preparing":
        go_on()
        if time.monotonic() > deadline:
            raise PeerUnavailable("The model owner did not open the session in time.")
        session = served.owner(ctx).get(
            _path(session), Session, params={"wait": _WAIT_SECONDS}, timeout=_WAIT_SECONDS + 20
        )
    if session.state != "ready":
        raise _ended(session)


def normalised(row: store.Inference, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    card = row.model_served().card
    return normalise(pixels, card.mean, card.deviation)


def _online(
    ctx: Context,
    session: Session,
    client: Client,
    images: NDArray[np.float32],
    report: Report,
    plan: Plan,
) -> Values:
    batch = len(images)
    request: bytes | None = client.first(images)
    while request is not None:
        report.go_on()
        number = client.request_number
        path = f"{_path(session)}/steps/{number}"
        size = response_size(plan, batch, number)
        answer = served.owner(ctx).request("PUT", path, content=request, timeout=130, largest=size)
        report.add(request_size(plan, batch, number) + response_size(plan, batch, number))
        request = client.step(answer.content)
        report.tell(number + 1, plan.requests)
    return client.result()
