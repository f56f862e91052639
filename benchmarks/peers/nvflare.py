"""NVFlare in POC mode: a server and three sites, each its own processes, on loopback with TLS."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

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
    log = folder / "job.log"
    try:
        with log.open("wb") as out:
            subprocess.run(words, env=env, stdout=out, stderr=out, timeout=limit, cwd=folder)
    except subprocess.TimeoutExpired:
        raise PeerMissing(f"not done within {limit:.0f} s") from None
    finally:
        _end(folder)
    return _times(folder, values, count + 1)


def _times(folder: Path, values: int, count: int) -> list[float]:
    site = folder / "times" / "site-1.json"
    if not site.exists():
        last = (folder / "job.log").read_text(errors="replace").strip().splitlines()
        raise PeerMissing(f"the job broke: {(last or ['no reason given'])[-1][-160:]}")
    seen = json.loads(site.read_text())
    got = [(each["first"], each["same"], each["values"]) for each in seen]
    if got != [(number, True, values) for number in range(count)]:
        raise PeerMissing("the sites did not get the mean of what they had sent")
    times = [each["time"] for each in seen]
    return [after - before for before, after in itertools.pairwise(times[1:])]


def _end(folder: Path) -> None:
    """Whatever of it still runs: its processes name their workspace."""
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(folder) in word for word in process.cmdline()):
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=10)
