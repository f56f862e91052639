"""The agent: asks the model owner for work and takes it in. Only outbound calls.

One process at a time asks, by a lease in the database. While the owner is away it asks less and
less often, and says so once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import httpx
from anyio.to_thread import run_sync
from pydantic import ValidationError

from primia.chassis.context import Context
from primia.chassis.leases import Held, lease
from primia.chassis.telemetry import get_logger, request_scope
from primia.errors import MalformedMessage, PeerRefused, PeerUnavailable, PrimiaError
from primia.messages.rounds import WORK_ITEM, WorkItem
from primia.prg import fresh_bytes
from services.data_node.training.intake import is_settled, prepare, take_in
from services.data_node.training.tables import Agent

log = get_logger(__name__)
LEASE_SECONDS = 10.0
LONGEST_PAUSE = 30.0
_MAX_ITEM_BYTES = 16 << 20
# An item in work is asked for again this often, to hear of a cancellation in the meantime.
_LOOK_SECONDS = 2.0
_SETTLE_SECONDS = 0.1
_FIRST_LOOK_SECONDS = 0.01


async def run(ctx: Context) -> None:
    """Until the service stops: hold the lease, ask, take in."""
    owner = ctx.settings.owner_name
    await run_sync(prepare, ctx)
    while not ctx.jobs.stopping():
        with contextlib.ExitStack() as stack:
            asking = lease(ctx.db, ctx.clock, Agent, owner, LEASE_SECONDS)
            held = await run_sync(stack.enter_context, asking)
            if held is not None:
                await _ask_on(ctx, held)
        await asyncio.sleep(LEASE_SECONDS / 4)


async def _ask_on(ctx: Context, held: Held) -> None:
    failures = 0
    async with ctx.peers.asynchronous(ctx.settings.owner_name, ctx.settings.owner_url) as http:
        while not (ctx.jobs.stopping() or held.lost.is_set()):
            with request_scope(None):
                try:
                    await _ask_once(ctx, http)
                except (httpx.HTTPError, PrimiaError) as error:
                    failures += 1
                    if failures == 1:
                        log.warning("the model owner gives no work", reason=_reason(error))
                    await asyncio.sleep(pause(failures))
                    continue
            if failures:
                log.info("the model owner is back", after_failures=failures)
            failures = 0


async def _ask_once(ctx: Context, http: httpx.AsyncClient) -> None:
    started = time.monotonic()
    item = await _ask(http, ctx.settings.owner_name, ctx.settings.poll_seconds)
    if item is None:
        # An owner that answers "nothing" at once must not be asked in a busy loop.
        if time.monotonic() - started < 1:
            await asyncio.sleep(_SETTLE_SECONDS)
        return
    row = await run_sync(take_in, ctx, item)
    until, wait = time.monotonic() + _LOOK_SECONDS, _FIRST_LOOK_SECONDS
    while time.monotonic() < until and not ctx.jobs.stopping():
        await asyncio.sleep(wait)
        if row is not None and await run_sync(is_settled, ctx, row):
            return
        wait = min(_SETTLE_SECONDS, 1.5 * wait)  # most answers are quick, training is not


async def _ask(http: httpx.AsyncClient, owner: str, seconds: float) -> WorkItem | None:
    """One long poll; None where the owner has nothing to do."""
    timeout = httpx.Timeout(seconds + 10, connect=5)
    path, wait = "/node/work", {"wait": seconds}
    async with http.stream("GET", path, params=wait, timeout=timeout) as answer:
        body = bytearray()
        async for piece in answer.aiter_bytes():
            body += piece
            if len(body) > _MAX_ITEM_BYTES:
                raise MalformedMessage(f"{owner} sends too large a work item.")
    if answer.status_code in (502, 503, 504):
        raise PeerUnavailable(f"{owner} is not available at present.")
    if not answer.is_success:
        raise PeerRefused(f"{owner} refused with status {answer.status_code}.")
    if answer.status_code == 204 or bytes(body) in (b"", b"null"):
        return None
    try:
        return WORK_ITEM.validate_json(bytes(body))
    except ValidationError as error:
        raise MalformedMessage(f"{owner} sent something that is no work item.") from error


def pause(failures: int) -> float:
    """Seconds before the next try: doubling from about one to thirty, each between half and all,
    so that the nodes do not all come back in the same moment."""
    whole = min(LONGEST_PAUSE, 2.0 ** min(failures - 1, 10))
    return whole * (0.5 + fresh_bytes(1)[0] / 512)


def _reason(error: Exception) -> str:
    return error.detail if isinstance(error, PrimiaError) else type(error).__name__
