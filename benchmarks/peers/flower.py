"""Flower, deployed: a SuperLink and three SuperNodes, each its own process, on loopback."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.peers import environment
from benchmarks.peers.environment import PeerMissing

PACKAGES = ("flwr==1.41.0", "numpy==2.4.6")
_LINK, _CLIENTS = 19_091, 19_100
_START_SECONDS = 8.0


def rounds(folder: Path, values: int, count: int, limit: float) -> list[float]:
    """Seconds of each round but the first. Raises PeerMissing with the reason."""
    python = environment.python("flower", PACKAGES)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    app, target = folder / "app", folder / "times.json"
    shutil.copytree(Path(__file__).with_name("flower_app"), app)
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{_LINK}"\n'
        "insecure = true\n"
    )
    env = {**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"}
    env["PATH"] = f"{python.parent}:{env['PATH']}"
    with _grid(python.parent, folder, env):
        config = f'values={values} rounds={count} target="{target}"'
        command = [str(python.parent / "flwr"), "run", str(app), "here", "--run-config", config]
        started = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        if started.returncode:
            raise PeerMissing((started.stderr or started.stdout).strip()[-200:])
        deadline = time.monotonic() + limit
        while not target.exists():
            if time.monotonic() > deadline:
                raise PeerMissing(f"not done within {limit:.0f} s")
            time.sleep(0.5)
    times = json.loads(target.read_text())
    return [after - before for before, after in itertools.pairwise(times[1:])]


@contextmanager
def _grid(bin_folder: Path, folder: Path, env: dict[str, str]) -> Iterator[None]:
    commands = [
        [
            "flower-superlink",
            "--insecure",
            "--disable-runtime-dependency-installation",
            f"--port={_LINK}",
        ]
    ]
    commands += [
        [
            "flower-supernode",
            "--insecure",
            f"--superlink=127.0.0.1:{_LINK}",
            f"--port={_CLIENTS + number}",
        ]
        for number in range(3)
    ]
    running = []
    try:
        for name, *words in commands:
            with (folder / f"{name}-{len(running)}.log").open("wb") as log:
                running.append(
                    subprocess.Popen(
                        [str(bin_folder / name), *words],
                        env=env,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
            time.sleep(2.0 if len(running) == 1 else 0)
        time.sleep(_START_SECONDS)
        yield
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):  # each leads the processes that it started
            for process in running:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
            time.sleep(3.0 if sign == signal.SIGTERM else 0)
        for process in running:
            process.wait()
