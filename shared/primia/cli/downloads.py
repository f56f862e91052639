"""Files from the network for a user at the command line: kept, and taken only whole and right."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import httpx

from primia.errors import InvalidInput, PeerUnavailable
from primia.learning.hashed import MAX_FILE_BYTES, check_hash

_TIMEOUT = httpx.Timeout(60, connect=10)


def cache_folder() -> Path:
    """By the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "primia"


def download_once(url: str) -> Path:
    """The file behind the address, fetched unless an earlier call has left it.

    Raises PeerUnavailable, or InvalidInput for a file that is too large or not what its name's
    hash promises.
    """
    name = PurePosixPath(urlsplit(url).path).name
    target = cache_folder() / name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{os.getpid()}-{name}")  # keeps the hash at its name's end
    try:
        _fetch(url, partial)
        check_hash(partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _fetch(url: str, target: Path) -> None:
    size = 0
    try:
        with httpx.stream("GET", url, timeout=_TIMEOUT, follow_redirects=True) as answer:
            answer.raise_for_status()
            with target.open("wb") as file:
                for piece in answer.iter_bytes(1 << 20):
                    size += len(piece)
                    if size > MAX_FILE_BYTES:
                        raise InvalidInput(f"{url} has more than {MAX_FILE_BYTES >> 20} MiB.")
                    file.write(piece)
    except httpx.HTTPError as error:
        raise PeerUnavailable(
            f"{url} could not be fetched ({type(error).__name__}).",
            hint="Fetch it elsewhere and give its path.",
        ) from error
