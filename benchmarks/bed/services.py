"""The product's own services for a benchmark: real processes, on this machine or on a slow network.

A bed is an embedded grid (primia.grid) of which only the members asked for run. Each member is a
host of its own: in the network given, or on loopback.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from benchmarks.bed.link import Network
from primia.client import DataNode, ModelOwner
from primia.grid import layout
from primia.grid.broker import server_command
from primia.grid.layout import Grid, Member
from primia.grid.processes import ROLES

PARTS = ("broker", *ROLES)
_READY_SECONDS = 90.0
_GRACE_SECONDS = 20.0


@dataclass
class Bed:
    grid: Grid
    network: Network | None
    settings: Mapping[str, Mapping[str, str]]
    running: dict[tuple[str, str], subprocess.Popen[bytes]] = field(default_factory=dict)

    def url(self, member: str, *, direct: bool = True) -> str:
        """``direct``: undelayed, for the benchmark itself; else as the other members reach it."""
        port = self.grid.member(member).port
        if self.network is None:
            return f"http://127.0.0.1:{port}"
        host = self.network.direct(member) if direct else self.network.address(member)
        return f"http://{host}:{port}"

    def owner(self) -> ModelOwner:
        return ModelOwner(self.grid.operator(), layout.OWNER, self.url(layout.OWNER))

    def node(self, name: str) -> DataNode:
        return DataNode(self.grid.operator(), name, self.url(name))

    def home(self, member: str) -> Path:
        return self.grid.home(self.grid.member(member))

    def start(self, member: str, part: str) -> None:
        one = self.grid.member(member)
        if part == "broker":
            directory = self.grid.home(one) / "broker"
            directory.mkdir(mode=0o700, exist_ok=True)
            words = server_command(directory, one.broker_port, one.broker_password)
        else:
            words = [sys.executable, "-m", f"services.{one.kind}", part]
        before = self.network.command(member) if self.network else []
        with (self.grid.home(one) / f"{part}.log").open("ab") as log:
            self.running[member, part] = subprocess.Popen(
                [*before, *words],
                env=self._environment(one),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run(self, member: str, module: str, *words: str, timeout: float = 300) -> str:
        """What a further process of a member prints."""
        before = self.network.command(member) if self.network else []
        done = subprocess.run(
            [*before, sys.executable, "-m", module, *words],
            env=self._environment(self.grid.member(member)),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["it ended"])[-1][:300])
        return done.stdout

    def kill(self, member: str, *parts: str) -> None:
        for part in parts:
            process = self.running.pop((member, part))
            process.kill()
            process.wait()

    def peaks(self) -> dict[str, int]:
        """Member -> most bytes that its API and worker have held since ``forget_peaks``; of each
        process by itself, so their sum is no less than they held at once."""
        found: dict[str, int] = {}
        for (member, part), process in self.running.items():
            if part != "broker":
                found[member] = found.get(member, 0) + peak_bytes(process.pid)
        return found

    def resident(self) -> dict[str, int]:
        """Member -> bytes that its API and worker hold now."""
        found: dict[str, int] = {}
        for (member, part), process in self.running.items():
            if part != "broker":
                held = int(psutil.Process(process.pid).memory_info().rss)
                found[member] = found.get(member, 0) + held
        return found

    def owners_halves(self, count: int) -> list[int]:
        """Bytes of the model owner's halves of the latest deals, by the crypto provider's books."""
        query = "SELECT bytes0 FROM deals ORDER BY created DESC LIMIT ?"
        path = self.home(layout.DEALER) / "database.sqlite"
        with contextlib.closing(sqlite3.connect(path)) as database:
            return [int(row[0]) for row in database.execute(query, (count,))]

    def forget_peaks(self) -> None:
        for process in self.running.values():
            forget_peak(process.pid)

    def processor_seconds(self) -> dict[str, float]:
        """Member -> user and system time of its API and worker so far."""
        found: dict[str, float] = {}
        for (member, part), process in self.running.items():
            if part != "broker":
                times = psutil.Process(process.pid).cpu_times()
                found[member] = found.get(member, 0.0) + times.user + times.system
        return found

    def _environment(self, member: Member) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PRIMIA_")}
        inherited.pop("DATABASE_URL", None)
        values = {**inherited, **self.grid.environment(member)}
        if self.network is not None:
            values |= {
                "PRIMIA_HOST": "0.0.0.0",
                "PRIMIA_ALLOW_PLAIN_HTTP": "true",
                "PRIMIA_DEALER_URL": self.url(layout.DEALER, direct=False),
            }
            if member.role == "data_node":
                values["PRIMIA_OWNER_URL"] = self.url(layout.OWNER, direct=False)
        return {**values, **self.settings.get(member.role, {})}

    def _stop(self) -> None:
        for parts in (ROLES, ("broker",)):
            ending = [self.running[key] for key in self.running if key[1] in parts]
            for process in ending:
                process.terminate()
            deadline = time.monotonic() + _GRACE_SECONDS
            for process in ending:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.1, deadline - time.monotonic()))
                process.kill()
                process.wait()

    def _migrate(self, members: Sequence[str]) -> None:
        for name in members:
            member = self.grid.member(name)
            command = [sys.executable, "-m", f"services.{member.kind}", "migrate"]
            with (self.home(name) / "migrate.log").open("ab") as log:
                env = self._environment(member)
                subprocess.run(command, env=env, check=True, stdout=log, stderr=log)

    def wait_ready(self, member: str) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url(member)}/health/ready", timeout=5).status_code == 200:
                    return
            ended = [key for key, process in self.running.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"{member} did not become ready; see {self.home(member)}/*.log")
            time.sleep(0.1)


@contextlib.contextmanager
def bed(
    root: Path,
    members: Sequence[str],
    network: Network | None = None,
    settings: Mapping[str, Mapping[str, str]] | None = None,
) -> Iterator[Bed]:
    """``settings``: role -> environment variables on top of the grid's own."""
    shutil.rmtree(root, ignore_errors=True)
    nodes = [name for name in members if name not in (layout.OWNER, layout.DEALER)]
    grid = layout.create(root, nodes=nodes or layout.NODES)
    made = Bed(grid, network, settings or {})
    try:
        for member in members:
            made.start(member, "broker")
        made._migrate(members)
        for member in members:
            for role in ROLES:
                made.start(member, role)
        for member in members:
            made.wait_ready(member)
        yield made
    finally:
        made._stop()


def peak_bytes(pid: int) -> int:
    """Most memory that a process has held (Linux: since its peak was last forgotten)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return int(psutil.Process(pid).memory_info().rss)
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def forget_peak(pid: int) -> None:
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")
