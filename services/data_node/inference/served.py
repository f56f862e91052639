"""What the model owner serves: found, verified, and kept on the disk and in memory."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from primia.chassis.context import Context
from primia.chassis.files import replace_durably
from primia.chassis.peers import PeerClient
from primia.errors import MalformedMessage
from primia.messages.inference import MAX_PLAN_BYTES, ServedModel, ServedModels, ServedPlan
from primia.mpc import linear_maps
from primia.mpc.client import PreparedOpening
from primia.mpc.opening import opening_size
from primia.mpc.plan import Plan
from primia.prg import fresh_bytes

_CACHE = "inference.openings"
_PLANS = "inference.plans"
_MOST_PLANS = 32
FOLDER = "openings"


def owner(ctx: Context) -> PeerClient:
    client: PeerClient = ctx.peers.client(ctx.settings.owner_name, ctx.settings.owner_url)
    return client


def dealer(ctx: Context) -> PeerClient:
    client: PeerClient = ctx.peers.client(ctx.settings.dealer_name, ctx.settings.dealer_url)
    return client


def served_models(ctx: Context) -> ServedModels:
    return owner(ctx).get("/inference/models", ServedModels)


@dataclass(frozen=True)
class Prepared:
    """A plan and its opening, ready for sessions; ``fetched``: bytes that came for it just now."""

    plan: Plan
    opening: PreparedOpening
    fetched: int = 0


class _Cache:
    def __init__(self, capacity: int = 4) -> None:
        self.lock = threading.Lock()
        self.capacity = capacity
        self.known: OrderedDict[str, Prepared] = OrderedDict()


def prepared(ctx: Context, model: ServedModel, wanted: ServedPlan) -> Prepared:
    """Raises MalformedMessage where plan or opening are not what their digests say."""
    cache: _Cache = ctx.extras.setdefault(_CACHE, _Cache())
    key = f"{wanted.plan}/{wanted.digest}/{wanted.opening_sha256}"
    with cache.lock:
        found = cache.known.get(key)
        if found is not None:
            cache.known.move_to_end(key)
            return found
        made = _fetch(ctx, model, wanted)
        cache.known[key] = Prepared(made.plan, made.opening)
        while len(cache.known) > cache.capacity:
            cache.known.popitem(last=False)
        return made


def _base(model: ServedModel) -> str:
    return f"/inference/models/{model.card.name}/versions/{model.card.version}"


def _read_plan(ctx: Context, model: ServedModel, wanted: ServedPlan) -> tuple[Plan, int]:
    """The verified plan, and the bytes that came for it."""
    path, params = f"{_base(model)}/plan", {"result": wanted.result, "accuracy": wanted.accuracy}
    answer = owner(ctx).request("GET", path, params=params)
    if len(answer.content) > MAX_PLAN_BYTES:
        raise MalformedMessage("The model owner's plan is over the size limit.")
    plan = Plan.parse(answer.content)
    _check_plan(plan, model, wanted)
    return plan, len(answer.content)


def public_plan(ctx: Context, model: ServedModel, wanted: ServedPlan) -> Plan:
    """The plan alone, asked for once. Raises MalformedMessage where it is not what its digest
    says."""
    known: dict[str, Plan] = ctx.extras.setdefault(_PLANS, {})
    plan = known.get(wanted.digest)
    if plan is not None:
        _check_plan(plan, model, wanted)
        return plan
    plan, _ = _read_plan(ctx, model, wanted)
    while len(known) >= _MOST_PLANS and (oldest := next(iter(known), None)) is not None:
        known.pop(oldest, None)
    known[wanted.digest] = plan
    return plan


def has_opening(ctx: Context, wanted: ServedPlan) -> bool:
    """Whether ``prepared`` would find the opening on the disk."""
    return _opening_path(ctx, wanted).exists()


def _opening_path(ctx: Context, wanted: ServedPlan) -> Path:
    return ctx.files.path(FOLDER, f"{wanted.plan}.{wanted.opening_sha256[:16]}")


def _fetch(ctx: Context, model: ServedModel, wanted: ServedPlan) -> Prepared:
    base = _base(model)
    plan, read = _read_plan(ctx, model, wanted)
    size = opening_size(plan)
    if wanted.opening_bytes != size:
        raise MalformedMessage("The opening has another size than the plan says.")
    path = _opening_path(ctx, wanted)
    fetched = 0
    if not path.exists():
        ctx.files.require(size)
        # A name of its own: another worker may fetch the same.
        partial = path.with_name(f"{path.name}.{fresh_bytes(4).hex()}.partial")
        asked = f"{base}/opening?result={wanted.result}&accuracy={wanted.accuracy}"
        try:
            owner(ctx).download(asked, partial, size)
            replace_durably(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        fetched = size
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != wanted.opening_sha256:
        path.unlink()
        raise MalformedMessage("The opening is not the one that its digest announces.")
    opening = PreparedOpening(plan, data, linear_maps.linear_map(ctx.settings.kernel))
    return Prepared(plan, opening, fetched + read)


def _check_plan(plan: Plan, model: ServedModel, wanted: ServedPlan) -> None:
    if plan.digest().hex() != wanted.digest or plan.result != wanted.result:
        raise MalformedMessage("The plan is not the one that its digest announces.")
    card = model.card
    shape = (card.channels, card.image_size, card.image_size)
    if plan.input_shape != shape or plan.classes != len(card.classes):
        raise MalformedMessage("The plan does not fit the model's description.")
