"""Memory that is there: a virtual machine's host may have taken back what was freed, and then the
first touch of a page takes the host's time (measured: 5 s a gigabyte, against 0.2 s).

What is timed must not depend on it: memory is touched and freed before. For every system alike.
"""

from __future__ import annotations

import mmap
import subprocess
import sys

GIGABYTES = 4


def touch(gigabytes: int = GIGABYTES) -> None:
    """In a process of its own, whose end frees it again."""
    subprocess.run([sys.executable, "-m", "benchmarks.bed.memory", str(gigabytes)], check=True)


def main(gigabytes: int) -> None:
    size = gigabytes << 30
    with mmap.mmap(-1, size) as block:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            block.madvise(mmap.MADV_HUGEPAGE)
        for start in range(0, size, mmap.PAGESIZE):
            block[start] = 1


if __name__ == "__main__":
    main(int(sys.argv[1]))
