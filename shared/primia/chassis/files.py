"""The state directory: private files, written whole or not at all, and never onto a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from primia.errors import StorageFull
from primia.prg import fresh_bytes


class Files:
    """Files under one directory that only the service's own user can read."""

    def __init__(self, root: Path, min_free_bytes: int) -> None:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root = root
        self._min_free = min_free_bytes

    def path(self, *parts: str) -> Path:
        """A path below the root; its directory is made. Parts are names, never paths."""
        for part in parts:
            if part in ("", ".", "..") or "/" in part or "\\" in part or "\0" in part:
                raise ValueError("a part of a path must be a plain name")
        path = self.root.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    def free_bytes(self) -> int:
        """What may still be written before the reserve is touched."""
        return max(0, shutil.disk_usage(self.root).free - self._min_free)

    def require(self, size: int) -> None:
        """Raises StorageFull unless ``size`` more bytes fit beside the reserve."""
        free = self.free_bytes()
        if size > free:
            raise StorageFull(
                f"{size} bytes are needed and {free} are free beside the reserve of "
                f"{self._min_free}.",
                hint="Free some disk space and try again; nothing was lost.",
            )

    @contextlib.contextmanager
    def replacing(self, path: Path) -> Iterator[BinaryIO]:
        """Write a file that appears under its name only when it is complete and on the disk."""
        temporary = path.with_name(f"{path.name}.{fresh_bytes(4).hex()}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with out_of_space_is_typed(), _create(temporary) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            replace_durably(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def remove_stale(
        self, folder: str, seconds: float, suffix: str = "", keep: Collection[str] = ()
    ) -> int:
        """Delete a folder's files that nobody has written to for so long: what a process that was
        killed has left. Only names that end with ``suffix``; ``keep``: names that are needed,
        however old. Returns how many went."""
        limit = time.time() - seconds
        gone = 0
        for path in self._files(folder):
            with contextlib.suppress(FileNotFoundError):  # another worker was faster
                stale = path.name.endswith(suffix) and path.name not in keep
                if stale and path.stat().st_mtime < limit:
                    path.unlink()
                    gone += 1
        return gone

    def _files(self, folder: str) -> list[Path]:
        place = self.root / folder
        return [each for each in place.iterdir() if each.is_file()] if place.is_dir() else []

    def write(self, path: Path, data: bytes | memoryview) -> None:
        self.require(len(data))
        with self.replacing(path) as file:
            file.write(data)


def replace_durably(source: Path, target: Path) -> None:
    """Rename, and have the new name on the disk before this returns: a row may refer to it."""
    source.replace(target)
    _settle_names(target.parent)


def settle(path: Path) -> None:
    """Have a file that was written piece by piece on the disk, with its name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    _settle_names(path.parent)


def _settle_names(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _create(path: Path) -> BinaryIO:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    return os.fdopen(handle, "wb")


@contextlib.contextmanager
def out_of_space_is_typed() -> Iterator[None]:
    """Turn the operating system's ENOSPC and EDQUOT into StorageFull."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(
                "The disk is full.", hint="Free some disk space and try again; nothing was lost."
            ) from error
        raise
