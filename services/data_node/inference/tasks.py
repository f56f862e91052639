"""Celery entry points of party 1: an inference is tried, burned and tried again, or given up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from primia.chassis.context import Context
from primia.chassis.jobs import Sweep, Task
from primia.chassis.leases import Held, lease
from primia.chassis.peers import PeerClient
from primia.chassis.telemetry import get_logger
from primia.errors import LocalError, PeerError, PeerUnavailable, PrimiaError
from primia.messages.inference import Cost, InferenceResult
from services.data_node.inference import kept, material, prefetch, served, store, streamed
from services.data_node.inference.domain import (
    MAX_ATTEMPTS,
    State,
    move,
    predictions,
    retry_seconds,
)
from services.data_node.inference.progress import Progress
from services.data_node.inference.run import Report, Values, attempt
from services.data_node.inference.served import dealer, owner

log = get_logger(__name__)
RUN = "inference.run"
BURN = "inference.burn"
_LEASE_SECONDS = 30
# No download takes so long.
_STALE_SECONDS = 6 * 3600
# An opening is fetched again where it is needed after all.
_UNUSED_SECONDS = 30 * 86400
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
            with _progress(ctx, inference_id, held) as progress:
                report = _report(ctx, inference_id, held, progress)
                values = one_attempt(ctx, row, _pixels(ctx, row), report)
            _finish(ctx, inference_id, held, values)
            prefetch.ask(ctx, row.model_served())  # what was used is replaced at once
        except _Stopped:
            _burn_own(ctx, inference_id, held)
        except PrimiaError as error:
            _broke(ctx, inference_id, held, error)
        except Exception as error:
            # Its text may quote values: its type alone is told.
            told = LocalError(f"It failed here ({type(error).__name__}).")
            _broke(ctx, inference_id, held, told)
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


def _progress(ctx: Context, inference_id: str, held: Held) -> Progress:
    def write(phase: str, step: int, steps: int, cost: Cost) -> None:
        with ctx.db.session() as session:
            row = _own(session, inference_id, held)
            row.phase, row.step, row.steps = phase, step, steps or row.steps
            row.cost = cost.model_dump(mode="json")
            store.note(session, row, "progress", ctx.clock.now())

    return Progress(write, _PROGRESS_SECONDS)


def _report(ctx: Context, inference_id: str, held: Held, progress: Progress) -> Report:
    def opened(deal: str, session_id: str | None) -> None:
        with ctx.db.session() as session:
            row = store.find(session, inference_id, lock=True)
            own, ended = row.lease_owner == held.owner, store.is_ended(row)
            # Named even if it has ended, so that it is burned; else by nobody.
            unnamed = _name(row, deal, session_id) if own else (deal, session_id)
        _discard(ctx, *unnamed)
        if ended or not own:
            raise _Stopped

    def go_on() -> None:
        progress.check()
        if held.lost.is_set() or ctx.jobs.stopping():
            raise _Stopped

    def waits(reason: str) -> None:
        with ctx.db.session() as session:
            row = _own(session, inference_id, held)
            row.reason = f"Waiting: {reason}"[:2000]
            store.note(session, row, "waiting", ctx.clock.now())

    return Report(opened, progress.tell, go_on, waits)


def _name(row: store.Inference, deal: str, session_id: str | None) -> tuple[str | None, str | None]:
    """Keep what this attempt has opened, first the deal, then the session too. Returns what an
    earlier one could not burn: its holder has just answered."""
    old_session = row.session if session_id not in (None, row.session) else None
    left = (row.deal if row.deal != deal else None, old_session)
    row.deal, row.session = deal, session_id or row.session
    return left


def _own(session: Session, inference_id: str, held: Held) -> store.Inference:
    """The row, to be changed; raises _Stopped where it has ended, or another worker holds it."""
    row = store.find(session, inference_id, lock=True)
    if store.is_ended(row) or row.lease_owner != held.owner:
        raise _Stopped
    return row


def _finish(ctx: Context, inference_id: str, held: Held, values: Values) -> None:
    with ctx.db.session() as session:
        row = _own(session, inference_id, held)
        status = row.status()
        found = predictions(values, status.result, status.images, row.model_served().card.classes)
        outcome = InferenceResult(
            id=row.id, model=row.model, version=row.version, predictions=found
        )
        sealed = ctx.secrets.seal(outcome.model_dump_json().encode(), outcome_purpose(row.id))
        row.outcome = sealed
        store.end(session, row, State.DONE, ctx.clock.now())
    log.info("inference done", inference=inference_id, tries=row.tries)


def _broke(ctx: Context, inference_id: str, held: Held, error: PrimiaError) -> None:
    """Burn it; try again later with a new deal, or give up with the reason."""
    _burn_own(ctx, inference_id, held)
    with ctx.db.session() as session:
        row = store.find(session, inference_id, lock=True)
        if store.is_ended(row) or row.lease_owner != held.owner:
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


def _burn_own(ctx: Context, inference_id: str, held: Held) -> None:
    """Burn, unless another worker has taken over: then what is named may be its own."""
    with ctx.db.reading() as session:
        own = store.find(session, inference_id).lease_owner == held.owner
    if own:
        burn(ctx, inference_id)


def burn(ctx: Context, inference_id: str) -> None:
    """Throw away what the row names as open. What cannot be reached stays named, for the next
    attempt or the sweep to burn."""
    with ctx.db.reading() as session:
        row = store.find(session, inference_id)
    gone = _discard(ctx, row.deal, row.session)
    if not gone:
        return
    with ctx.db.session() as session:
        current = store.find(session, inference_id, lock=True)
        if current.deal in gone:
            current.deal = None
        if current.session in gone:
            current.session = None


def _discard(ctx: Context, deal: str | None, session_id: str | None) -> set[str]:
    """End the session at the owner, burn the deal at the dealer; those that are gone now."""
    paths = []
    if session_id is not None:
        paths.append((session_id, owner(ctx), f"/inference/sessions/{session_id}"))
    if deal is not None:
        paths.append((deal, dealer(ctx), f"/deals/{deal}"))
    return {name for name, peer, path in paths if _burned(peer, path)}


def _burned(peer: PeerClient, path: str) -> bool:
    try:
        peer.delete(path)
    except PeerUnavailable as error:
        log.warning("not burned yet", path=path, detail=error.detail)
        return False
    except PrimiaError as error:  # it is not there any more, or not ours
        log.warning("refused to burn", path=path, detail=error.detail)
    return True


def resend(ctx: Context) -> None:
    """Take up inferences that nobody works on: a lost message, a dead worker; burn what others
    were not there to burn."""
    with ctx.db.reading() as session:
        now = ctx.clock.now()
        waiting, unburned = store.unfinished(session, now), store.unburned(session, now)
    for inference_id in waiting:
        ctx.jobs.enqueue(RUN, inference_id)
    for inference_id in unburned:
        ctx.jobs.enqueue(BURN, inference_id)


def tidy(ctx: Context) -> None:
    """Remove files that a worker was killed over, and openings that are not asked for any more."""
    ctx.files.remove_stale(material.FOLDER, _STALE_SECONDS)
    ctx.files.remove_stale(served.FOLDER, _STALE_SECONDS, ".partial")
    ctx.files.remove_stale(served.FOLDER, _UNUSED_SECONDS)
    kept.tidy(ctx, _STALE_SECONDS)


TASKS: Mapping[str, Task] = MappingProxyType({RUN: run, BURN: burn, prefetch.FETCH: prefetch.fetch})
SWEEPS: Mapping[str, tuple[float, Sweep]] = MappingProxyType(
    {
        "inference.resend": (15.0, resend),
        "inference.prefetch": (20.0, prefetch.refill),
        "inference.tidy": (600.0, tidy),
    }
)
