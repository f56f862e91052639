"""The files of a round at this site: incoming weights, own change, outgoing update."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from primia.aggregation.terms import RoundId
from primia.aggregation.wire import HEADER_BYTES, Header, Kind, frame
from primia.chassis.context import Context
from primia.chassis.files import replace_durably
from primia.errors import LocalError, MalformedMessage
from primia.messages.rounds import Candidate


@dataclass(frozen=True)
class RoundFiles:
    """``change``: the difference that local training made, float32; secret to this site."""

    ctx: Context
    run: str
    number: int

    @property
    def weights(self) -> Path:
        return self._path("weights.safetensors")

    @property
    def change(self) -> Path:
        return self._path("change.frame")

    @property
    def values(self) -> Path:
        return self._path("values.u8")

    @property
    def update(self) -> Path:
        return self._path("update.bin")

    def _path(self, name: str) -> Path:
        return self.ctx.files.path("rounds", self.run, str(self.number), name)

    def model(self, name: str) -> Path:
        """Another model to evaluate."""
        return self._path(f"model-{name}.safetensors")

    def fetch_weights(self, digest: str, size: int) -> Path:
        """The round's global model from the owner, exactly the announced bytes."""
        path = f"/rounds/{self.run}/{self.number}/weights"
        return self._fetch(path, self.weights, digest, size)

    def fetch_model(self, candidate: Candidate) -> Path:
        path = f"/rounds/{self.run}/models/{candidate.name}"
        target = self.model(candidate.name)
        return self._fetch(path, target, candidate.weights_digest, candidate.weights_bytes)

    def _fetch(self, path: str, target: Path, digest: str, size: int) -> Path:
        missing = size - (target.stat().st_size if target.exists() else 0)
        self.ctx.files.require(max(0, missing))
        owner = self.ctx.peers.client(self.ctx.settings.owner_name, self.ctx.settings.owner_url)
        seen = _Seen()
        owner.download(path, target, size, seen.piece)
        if seen.digest(target) != digest:
            target.unlink()
            raise MalformedMessage(
                f"The weights at {path} are not those that the model owner announced: their digest "
                "differs."
            )
        return target

    def keep_change(self, change: NDArray[np.float32]) -> None:
        """As the frame that a plain round sends."""
        round_id = RoundId(bytes.fromhex(self.run), self.number)
        vector = np.ascontiguousarray(change, dtype="<f4")
        self._keep_frame(self.change, Header(Kind.PLAIN, round_id, len(vector)), vector)

    def read_change(self) -> NDArray[np.float32]:
        try:
            change = np.fromfile(self.change, dtype="<f4", offset=HEADER_BYTES)
        except FileNotFoundError:
            change = np.empty(0, dtype="<f4")
        if not change.size:
            raise _change_is_gone()
        return change

    def send_change(self) -> None:
        """The change becomes the update, as it is. It may have, before a crash."""
        try:
            replace_durably(self.change, self.update)
        except FileNotFoundError:
            if not self.update.exists():
                raise _change_is_gone() from None

    def keep_carried(self, carried: bytes, uncounted: Collection[int] = ()) -> None:
        """What local training takes into the next round, sealed; then what earlier rounds kept
        beyond the one that this round went on from is deleted."""
        sealed = self.ctx.secrets.seal(carried, self._purpose(self.number))
        self.ctx.files.write(self._carried(self.number), sealed)
        before = self._latest_before(uncounted)
        self.forget(*(self._carried(number) for number in self._kept() if number < before))

    def read_carried(self, uncounted: Collection[int] = ()) -> bytes | None:
        """What the last round before this one kept that is not ``uncounted`` (messages Train); the
        same again after a crash in this one."""
        number = self._latest_before(uncounted)
        if number == 0:
            return None
        sealed = self._carried(number).read_bytes()
        return self.ctx.secrets.open(sealed, self._purpose(number))

    def _latest_before(self, uncounted: Collection[int]) -> int:
        counted = (each for each in self._kept() if each < self.number and each not in uncounted)
        return max(counted, default=0)

    def _kept(self) -> list[int]:
        return [int(path.stem) for path in self._carried(0).parent.glob("*.carried")]

    def _carried(self, number: int) -> Path:
        return self.ctx.files.path("rounds", self.run, f"{number}.carried")

    def _purpose(self, number: int) -> str:
        return f"primia/carried/{self.run}/{number}"

    def keep_values(self, values: NDArray[np.uint64]) -> None:
        """The integers that this site adds in a round."""
        self.ctx.files.write(self.values, np.ascontiguousarray(values, dtype="<u8").data.cast("B"))

    def read_values(self) -> NDArray[np.uint64]:
        try:
            return np.fromfile(self.values, dtype="<u8")
        except FileNotFoundError:
            raise LocalError("The integers of this round are no longer on the disk.") from None

    def keep_update(
        self,
        header: Header,
        vector: NDArray[np.generic],
        integers: NDArray[np.uint64] | None = None,
    ) -> None:
        """Exactly the bytes that will be sent, however often."""
        self._keep_frame(self.update, header, vector, integers)

    def _keep_frame(
        self,
        target: Path,
        header: Header,
        vector: NDArray[np.generic],
        integers: NDArray[np.uint64] | None = None,
    ) -> None:
        self.ctx.files.require(header.frame_bytes)
        with self.ctx.files.replacing(target) as file:
            for piece in frame(header, vector, integers):
                file.write(piece)

    def forget(self, *paths: Path) -> None:
        for path in paths:
            path.unlink(missing_ok=True)


class _Seen:
    """The SHA-256 of a download as it comes."""

    def __init__(self) -> None:
        self._found, self._end = hashlib.sha256(), 0

    def piece(self, at: int, data: bytes | memoryview) -> None:
        if at == 0:  # it began, perhaps anew
            self._found, self._end = hashlib.sha256(), 0
        if at == self._end:
            self._found.update(data)
            self._end += len(data)

    def digest(self, file: Path) -> str:
        """Of the whole file, read again if not all of it came now."""
        if self._end == file.stat().st_size:
            return self._found.hexdigest()
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()


def _change_is_gone() -> LocalError:
    return LocalError("The change of this round is no longer on this site's disk.")


def wipe(ctx: Context, run: str, *, below: int | None = None) -> None:
    """Delete the files of the run, or of its rounds before ``below``."""
    folder = ctx.files.root / "rounds" / run
    if below is None:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for each in folder.glob("*"):
        if each.name.isdigit() and int(each.name) < below:
            shutil.rmtree(each, ignore_errors=True)
