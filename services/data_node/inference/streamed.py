"""Party 1 of SecureNN over HTTP: one attempt at an inference, by streams to both other parties."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from primia.chassis.context import Context
from primia.chassis.duplex import CalledStream
from primia.errors import MalformedMessage
from primia.messages.securenn import Assistance, AssistanceRequest, StreamRequest, StreamSession
from primia.mpc import linear_maps
from primia.mpc.plan import Plan
from primia.mpc.securenn import ring64
from primia.mpc.securenn.driver import carry
from primia.mpc.securenn.layout import steps
from primia.mpc.securenn.prepared import PreparedOpening
from primia.mpc.securenn.roles import Client
from primia.mpc.securenn.wire import ASSISTANT, OWNER
from services.data_node.inference import store
from services.data_node.inference.patience import patiently
from services.data_node.inference.run import Report, Values, normalised
from services.data_node.inference.served import dealer, owner, public_plan

_OWNER_BUSY_SECONDS = 45.0
_OPENINGS = "inference.streamed openings"
# A slow line takes long over a round of a large batch.
_SILENCE_SECONDS = 300.0
# Before a session is open nothing is lost by waiting for a peer that is started again.
_AWAY_SECONDS = 60.0


@dataclass
class _Cache:
    """The latest used openings E, their linear maps prepared: 8 bytes a weight."""

    capacity: int = 2
    lock: threading.Lock = field(default_factory=threading.Lock)
    known: OrderedDict[str, PreparedOpening] = field(default_factory=OrderedDict)


def attempt(
    ctx: Context, row: store.Inference, pixels: NDArray[np.uint8], report: Report
) -> Values:
    """As ``run.attempt``. Nothing is left to burn: a session ends with its streams."""
    wanted, batch = row.plan(), len(pixels)
    ring64.load(ctx.settings.threads)
    report.begin("material")
    plan = patiently(
        lambda: public_plan(ctx, row.model_served(), wanted), report.go_on, away=_AWAY_SECONDS
    )
    assistance, session = _open(ctx, row, batch, report)
    streams = {
        OWNER: CalledStream(owner(ctx), f"/inference/streams/{session}/stream", _SILENCE_SECONDS),
        ASSISTANT: CalledStream(dealer(ctx), f"/assistances/{assistance}/stream", _SILENCE_SECONDS),
    }
    with streams[OWNER], streams[ASSISTANT]:
        return _talk(ctx, row, plan, normalised(row, pixels), streams, report)


def _open(ctx: Context, row: store.Inference, batch: int, report: Report) -> tuple[str, str]:
    """The sessions at the crypto provider and at the model owner, in this order."""
    wanted = row.plan()
    asked = AssistanceRequest(plan=wanted.plan, digest=wanted.digest, batch=batch)
    answer = patiently(
        lambda: dealer(ctx).post("/assistances", asked), report.go_on, away=_AWAY_SECONDS
    )
    assistance = dealer(ctx).parse(answer, Assistance)
    own = (wanted.plan, wanted.digest, batch, ctx.settings.owner_name, ctx.settings.name)
    named = (assistance.plan, assistance.digest, assistance.batch)
    if (*named, assistance.owner, assistance.node) != own:
        raise MalformedMessage(
            "The crypto provider's assistance is for another plan, batch or model owner."
        )
    request = StreamRequest(
        plan=wanted.plan, digest=wanted.digest, assistance=assistance.id, batch=batch
    )
    # Not for longer than the crypto provider keeps an assistance that nobody has joined.
    answer = patiently(
        lambda: owner(ctx).post("/inference/streams", request), report.go_on, _OWNER_BUSY_SECONDS
    )
    return assistance.id, owner(ctx).parse(answer, StreamSession).id


def _talk(
    ctx: Context,
    row: store.Inference,
    plan: Plan,
    images: NDArray[np.float32],
    streams: Mapping[int, CalledStream],
    report: Report,
) -> Values:
    """What does not depend on the images, then what does."""
    report.begin("offline")
    cache: _Cache = ctx.extras.setdefault(_OPENINGS, _Cache())
    key = f"{row.plan().plan}/{row.plan().digest}"
    with cache.lock:
        known = cache.known.get(key)
    client = Client(plan, len(images), known, linear_maps.linear_map64(ctx.settings.kernel))
    carry(client.prepare(), streams)
    with cache.lock:
        cache.known[key] = client.opening
        cache.known.move_to_end(key)
        while len(cache.known) > cache.capacity:
            cache.known.popitem(last=False)
    moved = _moved(streams)
    report.add(moved)
    report.begin("online")
    total = sum(1 for _ in steps(plan, len(images)))

    def watch(gate: int) -> None:
        report.go_on()
        report.tell(gate, total)

    result = carry(client.run(images), streams, watch)
    report.add(_moved(streams) - moved)
    report.tell(total, total)
    return result


def _moved(streams: Mapping[int, CalledStream]) -> int:
    return sum(stream.sent + stream.received for stream in streams.values())
