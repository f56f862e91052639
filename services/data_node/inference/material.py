"""This node's half of a deal: asked for, downloaded, verified, confirmed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from primia.chassis.context import Context
from primia.chassis.halves import fetch_half
from primia.errors import MalformedMessage, PeerUnavailable, UnexpectedMessage
from primia.messages.inference import Deal, DealRequest, ServedPlan
from primia.mpc.material import Half, Manifest, half_size
from primia.mpc.plan import Plan
from services.data_node.inference.patience import BUSY_SECONDS, patiently
from services.data_node.inference.served import dealer

_WAIT_SECONDS = 10
FOLDER = "halves"
# On demand the dealer may need minutes for a large model on a small machine.
_DEAL_SECONDS = 900


def reserve(
    ctx: Context,
    wanted: ServedPlan,
    batch: int,
    go_on: Callable[[], None],
    patience: float = BUSY_SECONDS,
    waits: Callable[[str], None] = lambda _: None,
    ahead: bool = False,
) -> Deal:
    """Ask for a deal; from the stock it is reserved at once, else it is being made."""
    request = DealRequest(plan=wanted.plan, digest=wanted.digest, batch=batch, ahead=ahead)
    answer = patiently(lambda: dealer(ctx).post("/deals", request), go_on, patience, waits)
    return dealer(ctx).parse(answer, Deal)


def until_reserved(ctx: Context, deal: Deal, go_on: Callable[[], None]) -> Deal:
    """Wait for a deal that is being made; ``go_on`` raises what should end the wait."""
    deadline = time.monotonic() + _DEAL_SECONDS
    while deal.state == "dealing":
        go_on()
        if time.monotonic() > deadline:
            raise PeerUnavailable("The crypto provider did not make the deal in time.")
        deal = dealer(ctx).get(
            f"/deals/{deal.id}", Deal, params={"wait": _WAIT_SECONDS}, timeout=_WAIT_SECONDS + 20
        )
    if deal.state != "reserved":
        raise UnexpectedMessage(f"The deal is {deal.state}. {deal.reason}".strip())
    return deal


def fetch(ctx: Context, deal: Deal, plan: Plan, batch: int) -> Half:
    """Half 1 as a memory map whose file has no name any more: nothing is left after a crash."""
    path = ctx.files.path(FOLDER, deal.id)
    try:
        download(ctx, deal, plan, batch, path)
        half = Half.map(path, plan, batch, 1, bytes.fromhex(deal.id))
    finally:
        path.unlink(missing_ok=True)
    confirm(ctx, deal)
    return half


def download(ctx: Context, deal: Deal, plan: Plan, batch: int, path: Path) -> None:
    """Half 1 as a file, verified. Raises MalformedMessage, StorageFull, PeerError."""
    size = half_size(plan, batch, 1)
    digests = (deal.own_sha256, deal.common_sha256)
    named = (deal.party, deal.batch, deal.digest, deal.bytes)
    if None in digests or named != (1, batch, plan.digest().hex(), size):
        raise MalformedMessage("The deal is not what was asked for.")
    ctx.files.require(size)
    manifest = Manifest(p0="", p1=deal.own_sha256 or "", common=deal.common_sha256 or "")
    fetch_half(dealer(ctx), deal.id, path, manifest, plan, batch, 1)


def confirm(ctx: Context, deal: Deal) -> None:
    dealer(ctx).request("POST", f"/deals/{deal.id}/received")
