"""The state directory: private files, written whole or not at all, and never onto a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
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
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def write(self, path: Path, data: bytes | memoryview) -> None:
        self.require(len(data))
        with self.replacing(path) as file:
            file.write(data)


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
