"""Dealing in the background: make deals that rows ask for, keep the stock, clear what has ended."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from primia import ring
from primia.chassis.context import Context
from primia.chassis.files import out_of_space_is_typed, replace_durably
from primia.chassis.jobs import Sweep, Task
from primia.chassis.leases import lease
from primia.chassis.telemetry import get_logger
from primia.errors import MalformedMessage, PrimiaError
from primia.fss import kernels
from primia.fss.kernel import Generator
from primia.mpc import linear_maps
from primia.mpc.dealer import deal as make_deal
from primia.mpc.material import PARTS, Manifest, Part
from primia.mpc.plan import Plan
from primia.mpc.sinks import Sinks
from primia.prg import Seed
from primia.ring import MakeMap
from services.crypto_provider.material import store
from services.crypto_provider.material.domain import (
    BEING_MADE,
    DealState,
    Event,
    Sizes,
    affordable,
    missing_stock,
    threads_of,
)
from services.crypto_provider.material.standing_back import StandingBack

log = get_logger(__name__)
FOLDER = "deals"
MASK_PURPOSE = "mask seed of plan "
_LEASE_SECONDS = 60
# A deal that fails this often fails for a reason that trying again does not remove.
_MAX_ATTEMPTS = 3
_BEING_MADE = tuple(state.value for state in BEING_MADE)


def part_path(ctx: Context, deal_id: str, part: Part) -> Path:
    return ctx.files.path(FOLDER, f"{deal_id}.{part}")


def deal(ctx: Context, deal_id: str) -> None:
    """Make one deal. What a broken attempt left is never used: material is drawn afresh."""
    with lease(ctx.db, ctx.clock, store.DealRow, deal_id, _LEASE_SECONDS) as held:
        if held is None:
            return
        with ctx.db.reading() as session:
            row = store.deal(session, deal_id)
            plan_row = store.plan(session, row.plan)
        if row.state not in _BEING_MADE:
            return
        if held.attempt > _MAX_ATTEMPTS:
            _give_up(ctx, deal_id, "it could not be made in several attempts")
            return
        try:
            _make(ctx, row, plan_row)
        except PrimiaError as error:
            _give_up(ctx, deal_id, error.detail)
            raise


def _make(ctx: Context, row: store.DealRow, plan_row: store.PlanRow) -> None:
    ctx.files.require(row.size_bytes)
    plan = Plan.parse(plan_row.document.encode())
    mask = Seed(ctx.secrets.open(plan_row.seed, MASK_PURPOSE + plan_row.id))
    # Named by attempt: of two workers that both believe they hold the row, one wins below.
    drafts = {part: part_path(ctx, f"{row.id}.{row.attempts}", part) for part in PARTS}
    try:
        generator, make_map = _generator(ctx, row), linear_maps.linear_map(ctx.settings.kernel)
        manifest = _write(plan, row, mask, drafts, generator, make_map)
        with ctx.db.session() as session:
            current = store.deal(session, row.id, lock=True)
            if current.state not in _BEING_MADE:  # burned or expired meanwhile
                return
            store.record_dealt(current, manifest)
            for part, draft in drafts.items():
                replace_durably(draft, part_path(ctx, row.id, part))
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
    _count(ctx, "dealt")


def _generator(ctx: Context, row: store.DealRow) -> Generator:
    waits = row.state == DealState.PROMISED.value and not row.ahead
    threads = threads_of(waits, ctx.settings.threads, ctx.settings.concurrency)
    ring.load(threads)

    def look_up() -> None:
        _make_more_urgent(ctx, row.id)
        ring.load(threads)  # what was made meanwhile may have taken more

    return StandingBack(kernels.generator(ctx.settings.kernel, threads), look_up)


def _make_more_urgent(ctx: Context, deal_id: str) -> None:
    """Make what goes before this deal, which is laid aside meanwhile; its lease is kept."""
    while not ctx.jobs.stopping():
        with ctx.db.reading() as session:
            own = store.deal(session, deal_id)  # a node may have claimed it from the stock
            urgent = store.more_urgent(session, own, ctx.clock.now())
        if urgent is None:
            return
        try:
            deal(ctx, urgent)
        except Exception as error:  # noqa: BLE001 - that deal's failure is not this one's
            log.warning("a deal broke", deal=urgent, error=type(error).__name__)


def _write(
    plan: Plan,
    row: store.DealRow,
    mask: Seed,
    drafts: Mapping[Part, Path],
    generator: Generator,
    make_map: MakeMap,
) -> Manifest:
    with contextlib.ExitStack() as stack:
        stack.enter_context(out_of_space_is_typed())
        files = {part: stack.enter_context(_create(path)) for part, path in drafts.items()}
        sinks, deal_id = Sinks(**files), bytes.fromhex(row.id)
        manifest = make_deal(
            plan, row.batch, mask, deal_id, sinks, generator=generator, linear_map=make_map
        )
        for file in files.values():
            # Not forced to the disk: what a power cut damages fails its digest and is burned.
            file.flush()
    return manifest


def _create(path: Path) -> BinaryIO:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    return os.fdopen(handle, "wb", buffering=1 << 20)


def _count(ctx: Context, outcome: str) -> None:
    ctx.metrics.counter("deals", "Deals by outcome", ("outcome",)).labels(outcome).inc()


def _give_up(ctx: Context, deal_id: str, reason: str) -> None:
    with ctx.db.session() as session:
        row = store.deal(session, deal_id, lock=True)
        if row.state in _BEING_MADE:
            row.advance(Event.GIVE_UP, reason)
    _count(ctx, "failed")


def remove_parts(ctx: Context, deal_id: str, parts: Iterable[Part] = PARTS) -> None:
    for part in parts:
        part_path(ctx, deal_id, part).unlink(missing_ok=True)


def refill(ctx: Context) -> None:
    """Ask for the deals that the stock lacks, as many as disk and cap allow; re-send lost work."""
    with ctx.db.reading() as session:
        waiting = store.being_made(session)
        plans = store.active_plans(session)
    for deal_id in waiting:
        ctx.jobs.enqueue("material.deal", deal_id)
    for plan_row in plans:
        refill_plan(ctx, plan_row.id)


def refill_plan(ctx: Context, plan_id: str) -> None:
    with ctx.db.session() as session:
        row = store.plan(session, plan_id, lock=True)  # else two would both see what is lacking
        ready, making = store.stock_counts(session, row.id, row.batch)
        wanted = missing_stock(row.stock, ready, making)
        if not row.active or not wanted:
            return
        try:
            sizes = Sizes.of(Plan.parse(row.document.encode()), row.batch)
        except MalformedMessage as error:
            log.warning("no stock: a plan of another release", plan=plan_id, reason=error.detail)
            return
        count = affordable(
            wanted,
            sizes.disk,
            store.held_bytes(session),
            ctx.settings.max_stock_bytes,
            ctx.files.free_bytes(),
            ctx.settings.ahead_share,
        )
        for _ in range(count):
            made = store.new_deal(session, row, row.batch, sizes, ctx.clock.now())
            ctx.jobs.enqueue_after(session, "material.deal", made.id)
    if count < wanted:
        log.warning("the stock is not refilled: no room", plan=plan_id, lacking=wanted - count)


def clear(ctx: Context) -> None:
    """Expire deals, drop the stock of withdrawn plans, remove files that no open deal needs."""
    with ctx.db.session() as session:
        for row in store.expired(session, ctx.clock.now()):
            row.advance(Event.EXPIRE, "it was not used in time")
        for row in store.of_inactive_plans(session):
            row.advance(Event.BURN, "the plan was withdrawn")
    _remove_orphans(ctx)


def _remove_orphans(ctx: Context) -> None:
    # Listed before the rows are asked: a deal finished in between keeps its files.
    folder = part_path(ctx, "any", "p0").parent
    found = [file for file in folder.iterdir() if file.is_file()]
    by_deal: dict[str, list[Path]] = {}
    for file in found:
        by_deal.setdefault(file.name.partition(".")[0], []).append(file)
    ids = list(by_deal)
    for start in range(0, len(ids), 500):
        batch = ids[start : start + 500]
        with ctx.db.reading() as session:
            open_ids = store.open_among(session, batch)
        for deal_id in set(batch) - open_ids:
            for file in by_deal[deal_id]:
                file.unlink(missing_ok=True)


TASKS: Mapping[str, Task] = MappingProxyType({"material.deal": deal})
SWEEPS: Mapping[str, tuple[float, Sweep]] = MappingProxyType(
    {"material.refill": (10.0, refill), "material.clear": (30.0, clear)}
)
