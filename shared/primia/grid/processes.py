"""Starting, finding and stopping the processes of an embedded grid.

Processes outlive the command that starts them. A process is known by its file in ``run/`` (process
number and time of birth, so that a number used again by the system is not mistaken for ours).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from primia.errors import Unavailable
from primia.grid.broker import server_command
from primia.grid.layout import Grid, Member

ROLES = ("api", "worker")
_READY_SECONDS = 90.0
_STOP_SECONDS = 25.0


@dataclass(frozen=True)
class Running:
    """A process of the grid; ``pid`` is None while it is not running."""

    member: str
    part: str
    pid: int | None
    memory: int = 0


def up(
    grid: Grid,
    data_roots: Iterable[Path] = (),
    told: Callable[[str], None] = lambda _text: None,
) -> None:
    """Start what is not running, and wait until every service is ready."""
    roots = tuple(data_roots)
    (grid.root / "run").mkdir(mode=0o700, exist_ok=True)
    told("brokers")
    for member in grid.members:
        _start_broker(grid, member)
    told("databases")
    _migrate(grid, roots)
    told("services")
    for member in grid.members:
        for role in ROLES:
            start(grid, member, role, roots)
    told("waiting")
    _wait_ready(grid)


def start(grid: Grid, member: Member, role: str, data_roots: Iterable[Path] = ()) -> None:
    """Start one role of one service, unless it is running."""
    if _alive(grid, member.name, role) is None:
        command = [sys.executable, "-m", f"services.{member.kind}", role]
        _spawn(grid, member.name, role, command, _environment(grid, member, data_roots))


def stop(grid: Grid, member: Member, part: str, force: bool = False) -> None:
    """End one process: asked first, killed after a while (or at once)."""
    process = _alive(grid, member.name, part)
    if process is not None:
        _end([process], force)
    _record(grid, member.name, part).unlink(missing_ok=True)


def down(grid: Grid) -> None:
    """Stop every process of the grid, the brokers last."""
    for parts in (ROLES, ("broker",)):
        found = [(m, part, _alive(grid, m.name, part)) for m in grid.members for part in parts]
        _end([process for _, _, process in found if process is not None])
        for member, part, _ in found:
            _record(grid, member.name, part).unlink(missing_ok=True)


def status(grid: Grid) -> list[Running]:
    found = []
    for member in grid.members:
        for part in ("broker", *ROLES):
            process = _alive(grid, member.name, part)
            memory = 0
            with contextlib.suppress(psutil.Error):
                memory = process.memory_info().rss if process else 0
            found.append(Running(member.name, part, process.pid if process else None, memory))
    return found


def log_file(grid: Grid, member: str, part: str) -> Path:
    return grid.root / member / f"{part}.log"


def _start_broker(grid: Grid, member: Member) -> None:
    if _alive(grid, member.name, "broker") is None:
        directory = grid.home(member) / "broker"
        directory.mkdir(mode=0o700, exist_ok=True)
        command = server_command(directory, member.broker_port, member.broker_password)
        _spawn(grid, member.name, "broker", command, dict(os.environ))


def _migrate(grid: Grid, data_roots: Iterable[Path]) -> None:
    running = [
        (
            member,
            subprocess.Popen(
                [sys.executable, "-m", f"services.{member.kind}", "migrate"],
                env=_environment(grid, member, data_roots),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            ),
        )
        for member in grid.members
        if _alive(grid, member.name, "api") is None
    ]
    for member, process in running:
        _, errors = process.communicate()
        if process.returncode:
            last = errors.strip().splitlines()[-1:] or ["no reason given"]
            raise Unavailable(f"The database of {member.name} was not migrated: {last[0]}")


def _environment(grid: Grid, member: Member, data_roots: Iterable[Path]) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PRIMIA_")}
    inherited.pop("DATABASE_URL", None)
    return {**inherited, **grid.environment(member, data_roots)}


def _spawn(grid: Grid, member: str, part: str, command: list[str], env: dict[str, str]) -> None:
    with _private_log(log_file(grid, member, part)) as log:
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=grid.root,
        )
    born = psutil.Process(process.pid).create_time()
    _record(grid, member, part).write_text(json.dumps({"pid": process.pid, "born": born}))


@contextlib.contextmanager
def _private_log(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)


def _record(grid: Grid, member: str, part: str) -> Path:
    return grid.root / "run" / f"{member}.{part}.json"


def _alive(grid: Grid, member: str, part: str) -> psutil.Process | None:
    try:
        document = json.loads(_record(grid, member, part).read_text())
        process = psutil.Process(int(document["pid"]))
        same = abs(process.create_time() - float(document["born"])) < 1
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return None


def _end(processes: list[psutil.Process], force: bool = False) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL if force else signal.SIGTERM)
    _, left = psutil.wait_procs(processes, timeout=_STOP_SECONDS)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=5)


def _wait_ready(grid: Grid) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    for member in grid.members:
        while (missing := _missing(grid, member)) is not None:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{member.name} did not become ready: {missing}",
                    hint=f"Its logs: {grid.home(member)}/*.log",
                )
            time.sleep(0.1)


def _missing(grid: Grid, member: Member) -> str | None:
    for role in ROLES:
        if _alive(grid, member.name, role) is None:
            return _last_words(log_file(grid, member.name, role)) or f"its {role} has ended"
    try:
        answer = httpx.get(f"{member.url}/health/ready", timeout=5)
    except httpx.HTTPError as error:
        return f"no answer yet ({type(error).__name__})"
    return None if answer.status_code == 200 else str(answer.json().get("missing", "not ready"))


def _last_words(path: Path) -> str:
    with contextlib.suppress(OSError):
        lines = path.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""
    return ""
