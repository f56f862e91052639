"""The dealt halves: their format, exact sizes, strict parsing and integrity. Both parties and D.

A deal for a plan and a batch is written as three parts. ``p0`` and ``p1``: header, the party's
seed, then layer by layer what its seed cannot give. ``common``: header, then the comparison keys,
the same for both. Half 0 is p0 followed by common, half 1 p1 followed by common. Bytes a value:

                                                                p0     p1
    linear layer    C0 = A * B - C1, a value of its result       4      -
    ReLU, widened   primia.mpc.selection.dealt                   8     12
    maximum of 2    the same; with two payloads               4; 4   4; 8
    maximum of 3    the same; with two payloads             20; 32 24; 36
    any gate        in common: its comparison keys, primia.fss.geometry

Gates come in blocks of 2^16 results; the keys of a block by comparison: all that look at the first
opened value, at the second, at their difference. Numbers are little-endian; each part is padded
with zeros to 16 bytes. A half is used for one session and then thrown away.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import math
import mmap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from primia.codec import Reader, Writer
from primia.errors import MalformedMessage
from primia.mpc.operations import Convolution, Dense
from primia.mpc.plan import Plan
from primia.mpc.selection import dealt
from primia.prg import SEED_BYTES, Seed
from primia.ring import Ring

Part = Literal["p0", "p1", "common"]
PARTS: tuple[Part, ...] = ("p0", "p1", "common")

MAGIC = b"PGMH"
VERSION = 4
ID_BYTES = 16
ALIGNMENT = 16
DIGEST_BYTES = 32
HEADER_BYTES = 4 + 2 + 2 + DIGEST_BYTES + ID_BYTES + 4 + 4 + SEED_BYTES
MAX_BATCH = 1 << 12


def part_size(plan: Plan, batch: int, part: Part) -> int:
    """Exact bytes of a part."""
    gates = plan.gates()
    if part == "common":
        return HEADER_BYTES + sum(gate.key_bytes(batch) for gate in gates)
    party = PARTS.index(part)
    words = sum(len(dealt(gate, party)) * gate.count for gate in gates)
    if party == 0:
        for op, shape in zip(plan.ops, plan.shapes()[1:], strict=True):
            words += math.prod(shape) if isinstance(op, Convolution | Dense) else 0
    return HEADER_BYTES + 4 * batch * words + padding(4 * batch * words)


def padding(size: int) -> int:
    return -size % ALIGNMENT


def half_size(plan: Plan, batch: int, party: int) -> int:
    """Exact bytes of a party's half."""
    return part_size(plan, batch, PARTS[party]) + part_size(plan, batch, "common")


def header(part: Part, plan: Plan, batch: int, deal_id: bytes, seed: bytes) -> bytes:
    """A part's first bytes; ``seed``: 16 bytes, zeros for common."""
    writer = Writer().raw(MAGIC).u16(VERSION).u16(PARTS.index(part)).raw(plan.digest())
    return writer.raw(deal_id).u32(batch).u32(0).raw(seed).take()


@dataclass(frozen=True)
class Manifest:
    """SHA-256 of the three parts, hexadecimal: the halves are checked against it after download."""

    p0: str
    p1: str
    common: str

    def to_json(self) -> bytes:
        return json.dumps(self.__dict__, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        try:
            document = json.loads(data)
            manifest = cls(**document)
            if any(len(bytes.fromhex(value)) != DIGEST_BYTES for value in document.values()):
                raise ValueError("a digest has another length")
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise MalformedMessage("The manifest of a deal does not parse.") from error
        return manifest

    def verify(self, chunks: Iterable[bytes], plan: Plan, batch: int, party: int) -> None:
        """Check a half, given in chunks of any size, or raise ``MalformedMessage``."""
        split = part_size(plan, batch, PARTS[party])
        own, common, seen = hashlib.sha256(), hashlib.sha256(), 0
        for chunk in chunks:
            cut = min(max(split - seen, 0), len(chunk))
            own.update(chunk[:cut])
            common.update(chunk[cut:])
            seen += len(chunk)
        expected = self.p0 if party == 0 else self.p1
        same = hmac.compare_digest(own.hexdigest(), expected)
        if not (hmac.compare_digest(common.hexdigest(), self.common) and same):
            raise MalformedMessage(
                "The dealt half is damaged: its digest differs from the manifest's.",
                hint="Download it again.",
            )


class Cursor:
    """Reads a section once from front to back, without copying."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> NDArray[np.uint8]:
        part = self._data[self._at : self._at + size]
        assert len(part) == size, "a half is as large as its plan says"
        self._at += size
        return part

    def words(self, count: int) -> Ring:
        return self.take(4 * count).view("<u4")

    def close(self) -> None:
        """Let go of the section: a mapped file stays in memory as long as anybody holds it."""
        self._data = self._data[:0].copy()


class Half:
    """One party's half, parsed: its seed and where its corrections and keys lie. A secret."""

    def __init__(self, party: int, plan: Plan, batch: int, deal_id: bytes, seed: Seed) -> None:
        self.party = party
        self.plan = plan
        self.batch = batch
        self.deal_id = deal_id
        self.seed = seed
        self._data: NDArray[np.uint8] | None = None
        self._mapping: mmap.mmap | None = None

    @classmethod
    def open(
        cls,
        buffer: bytes | memoryview | NDArray[np.uint8],
        plan: Plan,
        batch: int,
        party: int,
        deal_id: bytes | None = None,
    ) -> Half:
        """Parse a half; ``MalformedMessage`` if it is not exactly this party's for this plan."""
        data = np.frombuffer(buffer, dtype=np.uint8)
        expected = half_size(plan, batch, party)
        if len(data) != expected:
            raise MalformedMessage(
                f"The dealt half has {len(data)} bytes; {expected} were expected.",
                hint="Download it again.",
            )
        split = part_size(plan, batch, PARTS[party])
        found, seed = _parse_header(data, PARTS[party], plan, batch)
        common, zeros = _parse_header(data[split:], "common", plan, batch)
        if found != common or (deal_id is not None and found != deal_id):
            raise MalformedMessage("The dealt half belongs to another deal.")
        if any(zeros):
            raise MalformedMessage("The common part of the dealt half carries a seed.")
        half = cls(party, plan, batch, found, Seed(seed))
        half._data = data
        return half

    @classmethod
    def map(
        cls,
        path: Path,
        plan: Plan,
        batch: int,
        party: int,
        deal_id: bytes | None = None,
        *,
        whole: bool = True,
    ) -> Half:
        """As ``open``, on a read-only memory map of a file; read now, or by ``load``."""
        if not path.stat().st_size:
            raise MalformedMessage("The dealt half is an empty file.")
        with path.open("rb") as file:
            # At once, where the system can: a page at a time it would happen while a peer waits.
            flags = mmap.MAP_SHARED | (getattr(mmap, "MAP_POPULATE", 0) if whole else 0)
            data = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ)
        half = cls.open(memoryview(data), plan, batch, party, deal_id)
        half._mapping = data
        return half

    def corrections(self) -> Cursor:
        """What the party's seed does not give, in the order of the plan."""
        return self._section(HEADER_BYTES, part_size(self.plan, self.batch, PARTS[self.party]))

    def keys(self) -> Cursor:
        """The comparison keys, in the order of the plan's gates."""
        split = part_size(self.plan, self.batch, PARTS[self.party])
        return self._section(split + HEADER_BYTES, half_size(self.plan, self.batch, self.party))

    def _section(self, start: int, stop: int) -> Cursor:
        if self._data is None:
            raise MalformedMessage("The dealt half is closed.")
        return Cursor(self._data[start:stop])

    def load(self) -> None:
        """Have a mapped half in memory, before a peer waits for what is read in it."""
        if self._data is not None:
            self._data[:: mmap.PAGESIZE].max()

    def hold(self) -> Callable[[], None]:
        """Keep a mapped half mapped, even when it is closed, until the function is called.

        To unmap half a gigabyte takes 0.1 s: whoever has an answer to send does it afterwards.
        """
        mapping = self._mapping

        def let_go() -> None:
            if mapping is not None:
                with contextlib.suppress(BufferError):  # still read: it goes with its reader
                    mapping.close()  # without Python's lock, which freeing the map would hold

        return let_go

    def close(self) -> None:
        self._data = self._mapping = None

    def __repr__(self) -> str:
        return f"Half(<secret of party {self.party}>)"


def _parse_header(
    data: NDArray[np.uint8], part: Part, plan: Plan, batch: int
) -> tuple[bytes, bytes]:
    reader = Reader(bytes(data[:HEADER_BYTES]))
    reader.expect(MAGIC, "a dealt half")
    if reader.u16() != VERSION:
        raise MalformedMessage(f"Only dealt halves of version {VERSION} are known.")
    if reader.u16() != PARTS.index(part):
        raise MalformedMessage(f"This is not the part {part} of a deal.")
    if reader.raw(DIGEST_BYTES) != plan.digest():
        raise MalformedMessage("The dealt half was made for another plan.")
    deal_id = reader.raw(ID_BYTES)
    if reader.u32() != batch or reader.u32() != 0:
        raise MalformedMessage("The dealt half was made for another batch.")
    seed = reader.raw(SEED_BYTES)
    reader.finish()
    return deal_id, seed
