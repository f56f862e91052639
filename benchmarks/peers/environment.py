"""Environments of other systems, made once under benchmarks/.peers (not in the repository)."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

HOME = Path(__file__).parents[1] / ".peers"


class PeerMissing(Exception):
    """It could not be installed here; the message says why."""


def python(
    name: str, packages: Sequence[str], *, ours_behind: bool = False, dependencies: bool = True
) -> Path:
    """The interpreter of an environment with these pinned packages. Raises PeerMissing.

    ``ours_behind``: packages that it lacks (torch, NumPy) come from the project's environment;
    ``dependencies``: whether pip installs what the packages ask for.
    """
    folder = HOME / name
    found = folder / "bin" / "python"
    stamp, wanted = folder / "installed.txt", "\n".join(packages)
    if stamp.exists() and stamp.read_text() == wanted:
        return found
    HOME.mkdir(exist_ok=True)
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    pip = [str(found), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, *([] if dependencies else ["--no-deps"]), *packages])
    if ours_behind:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        site = folder / "lib" / version / "site-packages"
        paths = [path for path in sys.path if path.endswith("site-packages")]
        paths = paths or [sysconfig.get_path("purelib")]
        (site / "behind.pth").write_text("\n".join(paths) + "\n")
    stamp.write_text(wanted)
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PeerMissing(f"not installed: {last[:200]}")
