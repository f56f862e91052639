"""Celery entry points of party 1: an inference is tried, burned and tried again, or given up."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from primia.chassis.context import Context
from primia.chassis.jobs import Sweep, Task
from primia.chassis.leases import Held, lease
from primia.chassis.telemetry import get_logger
from primia.errors import LocalError, PeerError, PrimiaError
from primia.messages.inference import Cost, InferenceResult
from services.data_node.inference import prefetch, store, streamed
from services.data_node.inference.domain import (
    MAX_ATTEMPTS,
    State,
    move,
    predictions,
    retry_seconds,
)
from services.data_node.inference.run import Report, Values, attempt
from services.data_node.inference.served import dealer, owner

log = get_logger(__name__)
RUN = "inference.run"
BURN = "inference.burn"
_LEASE_SECONDS = 30
# Progress is for people: rows are not written more often than they look.
_PROGRESS_SECONDS = 0.25


class _Stopped(Exception):
    """The inference was cancelled, or this process is asked to end, or has lost the lease."""


def pixels_purpose(inference_id: str) -> str:
    return f"images of inference {inference_id}"


def outcome_purpose(inference_id: str) -> str:
    return f"result of inference {inference_id}"


def run(ctx: Context, inference_id: str) -> None:
    """One attempt. What an earlier one left open (its worker died) is burned first."""
    with lease(ctx.db, ctx.clock, store.Inference, inference_id, _LEASE_SECONDS) as held:
        if held is None:
            return
        row = _begin(ctx, inference_id)
        if row is None:
            return
        try:
            one_attempt = streamed.attempt if row.protocol == "securenn" else attempt
            values = one_attempt(ctx, row, _pixels(ctx, row), _report(ctx, inference_id, held))
            _finish(ctx, inference_id, values)
        except _Stopped:
            burn(ctx, inference_id)
        except PrimiaError as error:
            burn(ctx, inference_id)
            _broke(ctx, inference_id, error)
        except Exception as error:
            # Its text may quote values: its type alone is told.
            burn(ctx, inference_id)
            _broke(ctx, inference_id, LocalError(f"It failed here ({type(error).__name__})."))
            raise


def _begin(ctx: Context, inference_id: str) -> store.Inference | None:
    burn(ctx, inference_id)
    with ctx.db.session() as session:
        row = store.find(session, inference_id, lock=True)
        if store.is_ended(row):
            return None
        if row.tries >= MAX_ATTEMPTS:  # the worker died each time
            reason = row.reason or "The worker was interrupted each time."
            store.end(session, row, State.FAILED, ctx.clock.now(), _given_up(row.tries, reason))
            return None
        if row.state == State.QUEUED.value:
            row.state = move(State.QUEUED, State.RUNNING).value
        row.tries += 1
        row.step = 0
        store.note(session, row, "attempt", ctx.clock.now())
    return row


def _pixels(ctx: Context, row: store.Inference) -> NDArray[np.uint8]:
    card = row.model_served().card
    shape = (len(row.images), card.channels, card.image_size, card.image_size)
    raw = ctx.secrets.open(row.pixels or b"", pixels_purpose(row.id))
    if len(raw) != math.prod(shape):
        raise LocalError("The stored images do not fit the model.")
    return np.frombuffer(raw, np.uint8).reshape(shape)  # (N, C, H, W)


def _report(ctx: Context, inference_id: str, held: Held) -> Report:
    written = [0.0]

    def opened(deal: str | None, session_id: str | None) -> None:
        with ctx.db.session() as session:
            row = store.find(session, inference_id, lock=True)
            row.deal, row.session = deal, session_id
            ended = store.is_ended(row)
        if ended:
            raise _Stopped

    def progress(phase: str, step: int, steps: int, cost: Cost) -> None:
        now = time.monotonic()
        if now - written[0] < _PROGRESS_SECONDS and step not in (0, steps):
            return
        written[0] = now
        with ctx.db.session() as session:
            row = store.find(session, inference_id, lock=True)
            if store.is_ended(row):
                raise _Stopped
            row.phase, row.step, row.steps = phase, step, steps or row.steps
            row.cost = cost.model_dump(mode="json")
            store.note(session, row, "progress", ctx.clock.now())

    def go_on() -> None:
        if held.lost.is_set() or ctx.jobs.stopping():
            raise _Stopped

    def waits(reason: str) -> None:
        with ctx.db.session() as session:
            row = store.find(session, inference_id, lock=True)
            if not store.is_ended(row):
                row.reason = f"Waiting: {reason}"[:2000]
                store.note(session, row, "waiting", ctx.clock.now())

    return Report(opened, progress, go_on, waits)


def _finish(ctx: Context, inference_id: str, values: Values) -> None:
    with ctx.db.session() as session:
        row = store.find(session, inference_id, lock=True)
        if store.is_ended(row):
            raise _Stopped
        status = row.status()
        found = predictions(values, status.result, status.images, row.model_served().card.classes)
        outcome = InferenceResult(
            id=row.id, model=row.model, version=row.version, predictions=found
        )
        sealed = ctx.secrets.seal(outcome.model_dump_json().encode(), outcome_purpose(row.id))
        row.outcome = sealed
        store.end(session, row, State.DONE, ctx.clock.now())
    log.info("inference done", inference=inference_id, tries=row.tries)


def _broke(ctx: Context, inference_id: str, error: PrimiaError) -> None:
    """Try again later with a new deal, or give up with the reason."""
    with ctx.db.session() as session:
        row = store.find(session, inference_id, lock=True)
        if store.is_ended(row):
            return
        reason = str(error)
        # What is wrong on this side (the disk, the image) is not mended by another deal.
        ours = not isinstance(error, PeerError)
        if ours or row.tries >= MAX_ATTEMPTS:
            told = reason if ours else _given_up(row.tries, reason)
            store.end(session, row, State.FAILED, ctx.clock.now(), told)
            return
        row.reason = f"Attempt {row.tries} of {MAX_ATTEMPTS}: {reason}"[:2000]
        row.phase = "waiting"
        store.note(session, row, "retry", ctx.clock.now())
        ctx.jobs.enqueue_after(session, RUN, inference_id, retry_seconds(row.tries))
    log.warning("an attempt broke", inference=inference_id, code=error.code, detail=error.detail)


def _given_up(tries: int, reason: str) -> str:
    return f"Given up after {tries} attempts. The last one: {reason}"


def burn(ctx: Context, inference_id: str) -> None:
    """Throw away what the row names as open: the session at the owner, the deal at the dealer."""
    with ctx.db.reading() as session:
        row = store.find(session, inference_id)
    if row.deal is None and row.session is None:
        return
    if row.session is not None:
        with contextlib.suppress(PrimiaError):
            owner(ctx).delete(f"/inference/sessions/{row.session}")
    if row.deal is not None:
        try:
            dealer(ctx).delete(f"/deals/{row.deal}")
        except PrimiaError as error:
            # It expires at the dealer; it is not used here again in any case.
            log.warning("a deal was not burned", deal=row.deal, detail=error.detail)
    with ctx.db.session() as session:
        current = store.find(session, inference_id, lock=True)
        if current.deal == row.deal:
            current.deal = current.session = None


def resend(ctx: Context) -> None:
    """Take up inferences that nobody works on: a lost message, a dead worker."""
    with ctx.db.reading() as session:
        waiting = store.unfinished(session, ctx.clock.now())
    for inference_id in waiting:
        ctx.jobs.enqueue(RUN, inference_id)


TASKS: Mapping[str, Task] = MappingProxyType({RUN: run, BURN: burn, prefetch.FETCH: prefetch.fetch})
SWEEPS: Mapping[str, tuple[float, Sweep]] = MappingProxyType(
    {"inference.resend": (15.0, resend), "inference.prefetch": (20.0, prefetch.refill)}
)
