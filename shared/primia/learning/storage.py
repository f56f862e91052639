"""Writing a file whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from primia.errors import StorageFull

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def full_disk_is_an_error(what: str) -> Iterator[None]:
    """Turns the operating system's 'no space left' into StorageFull, which names ``what``."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageFull(
            f"There is no disk space left for {what}.",
            hint="Free some space and start again; nothing was lost.",
        ) from None


@contextmanager
def replacing(target: Path, what: str, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A file that takes the target's place once the block has ended well, and else is removed.

    A reader sees the old file or the whole new one; with ``sync`` also after the machine went
    down (some milliseconds a file). Raises StorageFull, which names ``what``.
    """
    with full_disk_is_an_error(what):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            Path(name).replace(target)
        except BaseException:
            with suppress(FileNotFoundError):
                Path(name).unlink()
            raise
