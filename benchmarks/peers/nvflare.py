"""NVFlare in POC mode: a server and three sites, each its own processes, on loopback."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers import environment
from benchmarks.peers.environment import PeerMissing

PACKAGES = ("nvflare==2.9.0", "numpy==2.4.6")
_APP = Path(__file__).with_name("nvflare_app")


def rounds(folder: Path, values: int, count: int, limit: float) -> list[float]:
    """Seconds of each round but the first, as a site sees them: from one global array to the next.

    Raises PeerMissing with the reason, also where a global array is not the mean of what was sent.
    """
    python = environment.python("nvflare", PACKAGES)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    app = folder / "app"
    shutil.copytree(_APP, app)
    words = [str(python), str(app / "job.py"), str(folder), str(values), str(count + 1)]
    env = {**os.environ, "HOME": str(folder), "NVFLARE_POC_WORKSPACE": str(folder / "poc")}
    env["PATH"] = f"{python.parent}:{env['PATH']}"
    env.pop("PYTHONPATH", None)
    with (folder / "job.log").open("wb") as out:
        job = subprocess.Popen(words, env=env, stdout=out, stderr=out, cwd=folder)
    try:
        return _times(_seen(folder, job, count + 1, limit), values)
    finally:
        _end(folder)


def _seen(folder: Path, job: subprocess.Popen[bytes], count: int, limit: float) -> list[Any]:
    """The global arrays that a site got, as it tells them after each."""
    site, deadline = folder / "times" / "site-1.json", time.monotonic() + limit
    while True:
        seen: list[Any] = json.loads(site.read_text()) if site.exists() else []
        if len(seen) == count:
            return seen
        if job.poll():
            last = (folder / "job.log").read_text(errors="replace").strip().splitlines()
            raise PeerMissing(f"the job broke: {(last or ['no reason given'])[-1][-160:]}")
        if time.monotonic() > deadline:
            raise PeerMissing(f"{len(seen)} of {count} rounds begun within {limit:.0f} s")
        time.sleep(0.5)


def _times(seen: list[Any], values: int) -> list[float]:
    got = [(each["first"], each["same"], each["values"]) for each in seen]
    if got != [(number, True, values) for number in range(len(seen))]:
        raise PeerMissing("the sites did not get the mean of what they had sent")
    times = [each["time"] for each in seen]
    return [after - before for before, after in itertools.pairwise(times[1:])]


def _end(folder: Path) -> None:
    """Whatever of it still runs: its processes name their workspace."""
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            named = any(str(folder) in word for word in process.cmdline())
            if named and process.pid != os.getpid():
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=10)
