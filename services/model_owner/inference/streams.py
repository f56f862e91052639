"""Party 0 of SecureNN: one session, over a stream from the data node and one to the third party."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from primia.chassis.context import Context
from primia.chassis.duplex import CalledStream, ServedStream, require_joined
from primia.chassis.identity import decode_key
from primia.chassis.stream_host import StreamHost
from primia.errors import Conflict, MalformedMessage, PeerRefused
from primia.messages.inference import MaskSeed
from primia.messages.securenn import Assistance, StreamRequest
from primia.mpc import linear_maps
from primia.mpc.compiled import CompiledModel
from primia.mpc.securenn import ring64
from primia.mpc.securenn.driver import Link, carry
from primia.mpc.securenn.prepared import PreparedModel
from primia.mpc.securenn.roles import Owner
from primia.mpc.securenn.wire import ASSISTANT, CLIENT
from primia.prg import SEED_BYTES, Seed
from services.model_owner.inference import models
from services.model_owner.inference.serving import dealer

_HOST = "inference.streams"
_MODELS = "inference.streamed models"
_JOIN_SECONDS = 60.0
# A slow line takes long over a round of a large batch.
_SILENCE_SECONDS = 300.0


@dataclass
class _Cache:
    """The latest used models, their linear maps prepared."""

    capacity: int = 2
    lock: threading.Lock = field(default_factory=threading.Lock)
    known: OrderedDict[str, PreparedModel] = field(default_factory=OrderedDict)


def host(ctx: Context) -> StreamHost:
    limits = ctx.settings.max_streams, ctx.settings.max_sessions_a_node
    found: StreamHost = ctx.extras.setdefault(_HOST, StreamHost(*limits))
    return found


def open_session(ctx: Context, wanted: StreamRequest, node: str) -> str:
    """Raises Conflict where the assistance is for something else, Unavailable if there is no room.

    The crypto provider would deal for its own plan: of another one, or for another node, this
    party's answers would be masked by what was not made for them.
    """
    _check_assistance(ctx, wanted, node)
    stream = ServedStream(_SILENCE_SECONDS)
    return host(ctx).open(node, {node: stream}, lambda: _serve(ctx, wanted, stream))


def _check_assistance(ctx: Context, wanted: StreamRequest, node: str) -> None:
    try:
        found = dealer(ctx).get(f"/assistances/{wanted.assistance}", Assistance)
    except PeerRefused as error:
        raise Conflict(
            "The crypto provider knows no such assistance for this model owner.",
            hint="Ask it for a new one: POST /assistances.",
        ) from error
    own: dict[str, str | int] = {
        "id": wanted.assistance,
        "plan": wanted.plan,
        "digest": wanted.digest,
    }
    own |= {"batch": wanted.batch, "owner": ctx.settings.name, "node": node}
    other = [field for field, value in own.items() if getattr(found, field) != value]
    if other:
        raise Conflict(
            f"The crypto provider's assistance is for another {other[0]} than this session.",
            hint="Ask it for one for this plan, batch and node.",
        )


def _serve(ctx: Context, wanted: StreamRequest, stream: ServedStream) -> None:
    ring64.load(ctx.settings.threads)
    model = _model(ctx, wanted.plan)
    answer = dealer(ctx).get(f"/plans/{wanted.plan}/mask", MaskSeed)
    raw = decode_key(answer.seed)
    if len(raw) != SEED_BYTES:
        raise MalformedMessage("The crypto provider sent a seed of another length.")
    owner = Owner(model, wanted.batch, Seed(raw))
    path = f"/assistances/{wanted.assistance}/stream"
    with CalledStream(dealer(ctx), path, _SILENCE_SECONDS) as assistant:
        require_joined(stream, _JOIN_SECONDS)
        links: dict[int, Link] = {CLIENT: stream, ASSISTANT: assistant}
        carry(owner.prepare(), links)
        carry(owner.run(), links)


def _model(ctx: Context, plan_id: str) -> PreparedModel:
    cache: _Cache = ctx.extras.setdefault(_MODELS, _Cache())
    with cache.lock:
        if plan_id not in cache.known:
            data = models.weights_path(ctx.files, plan_id).read_bytes()
            compiled = CompiledModel.from_bytes(data)
            cache.known[plan_id] = PreparedModel(
                compiled.plan, compiled.weights, linear_maps.linear_map64(ctx.settings.kernel)
            )
        cache.known.move_to_end(plan_id)
        while len(cache.known) > cache.capacity:
            cache.known.popitem(last=False)
        return cache.known[plan_id]
