"""Fetching a dealt half: resumed where it breaks off, verified while it comes."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterator
from pathlib import Path

from primia.chassis.peers import PeerClient
from primia.mpc.material import PARTS, Manifest, half_size, part_size
from primia.mpc.plan import Plan

_PIECE = 1 << 20


def fetch_half(
    dealer: PeerClient,
    deal_id: str,
    target: Path,
    manifest: Manifest,
    plan: Plan,
    batch: int,
    party: int,
    arrives: Callable[[], None] = lambda: None,
) -> None:
    """The party's half as a file. Raises MalformedMessage where it is not the manifest's.

    ``arrives`` is called with every piece that comes; what it raises ends the download.
    """
    digests = _Digests(part_size(plan, batch, PARTS[party]))
    size = half_size(plan, batch, party)

    def seen(start: int, piece: bytes | memoryview) -> None:
        digests.see(start, piece)
        arrives()

    dealer.download(f"/deals/{deal_id}/half", target, size, seen)
    own = manifest.p0 if party == 0 else manifest.p1
    if not digests.are(size, own, manifest.common):
        # Damaged, or fetched in part by a process that is gone: the file itself decides.
        manifest.verify(_pieces(target), plan, batch, party)


class _Digests:
    """SHA-256 of both parts of a half, of pieces that come in order from the first byte on."""

    def __init__(self, split: int) -> None:
        self._split = split
        self._seen = 0
        self._own, self._common = hashlib.sha256(), hashlib.sha256()

    def see(self, start: int, piece: bytes | memoryview) -> None:
        """``start``: where in the half the piece lies. After a gap or a repetition: nothing."""
        if start != self._seen:
            return
        view = memoryview(piece)
        cut = min(max(self._split - start, 0), len(piece))
        self._own.update(view[:cut])
        self._common.update(view[cut:])
        self._seen += len(piece)

    def are(self, size: int, own: str, common: str) -> bool:
        whole = self._seen == size
        same_own = hmac.compare_digest(self._own.hexdigest(), own)
        return hmac.compare_digest(self._common.hexdigest(), common) and same_own and whole


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
