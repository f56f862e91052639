"""A request's body onto the disk: bounded, hashed on the way, refused before a full disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from anyio.to_thread import run_sync
from fastapi import Request

from primia.chassis.files import Files, out_of_space_is_typed
from primia.errors import InvalidInput, MalformedMessage, TooLarge

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Received:
    digest: str
    bytes: int


async def to_file(
    request: Request,
    files: Files,
    target: Path,
    limit: int,
    *,
    exactly: bool = False,
    head: int = 0,
    check_head: Callable[[bytes], None] | None = None,
) -> Received:
    """Stream the body into ``target``, which the caller removes.

    ``exactly``: it must have ``limit`` bytes. ``check_head`` sees its first ``head`` bytes as soon
    as they are there. Raises TooLarge, StorageFull, MalformedMessage, InvalidInput (no body).
    """
    announced = request.headers.get("Content-Length")
    if announced is not None and announced.isdigit():
        check_size(int(announced), limit, exactly=exactly)
    files.require(limit if announced is None else int(announced))
    digest, size = hashlib.sha256(), 0
    with out_of_space_is_typed(), target.open("xb") as file:

        def keep(piece: bytes) -> None:
            digest.update(piece)
            file.write(piece)

        async for piece in _gathered(request, head, check_head):
            size += len(piece)
            if size > limit:
                raise TooLarge(f"The body is larger than the {limit} bytes that it can have.")
            await run_sync(keep, piece)
        await run_sync(_to_disk, file.flush, file.fileno())
    if size == 0:
        raise InvalidInput("The body is empty.", hint="Send the file as the body.")
    check_size(size, limit, exactly=exactly)
    return Received(digest.hexdigest(), size)


def _to_disk(flush: Callable[[], None], handle: int) -> None:
    flush()
    os.fsync(handle)


def check_size(size: int, limit: int, *, exactly: bool) -> None:
    if size > limit:
        raise TooLarge(f"The body of {size} bytes is larger than the {limit} that it can have.")
    if exactly and size != limit:
        raise MalformedMessage(f"The body has {size} bytes; {limit} are expected.")


async def _gathered(
    request: Request, head: int, check: Callable[[bytes], None] | None
) -> AsyncIterator[bytes]:
    """The body in pieces of about a MiB; the head is checked as soon as it is there."""
    gathered, checked = bytearray(), check is None
    async for piece in request.stream():
        gathered += piece
        if not checked and check is not None and len(gathered) >= head:
            check(bytes(gathered[:head]))
            checked = True
        if checked and len(gathered) >= _PIECE:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        if not checked and check is not None:
            check(bytes(gathered))  # too short: the check says so
        yield bytes(gathered)
