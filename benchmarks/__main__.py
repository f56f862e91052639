"""All benchmarks that need no data of yours, one after another, or one of them by its name.

python -m benchmarks [--list] [NAME [ARGUMENTS ...]]
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
# Of a run without a name: what needs neither data nor other systems' packages, shortest first.
DEFAULT = ("aggregation", "kernels", "inference_parts")


def main(arguments: list[str]) -> int:
    found = benchmarks()
    match arguments:
        case []:
            return max(run(name, []) for name in DEFAULT)
        case ["--list"]:
            for name, summary in found.items():
                print(f"{name:20}{summary}")
            return 0
        case [name, *rest] if name in found:
            return run(name, rest)
    print(f"{__doc__}\nBenchmarks: {', '.join(found)}", file=sys.stderr)
    return 0 if arguments[0] in ("-h", "--help") else 2


def benchmarks() -> dict[str, str]:
    """Name -> first line of its description, of every module here that can be run."""
    texts = {path.stem: path.read_text() for path in sorted(FOLDER.glob("[a-z]*.py"))}
    trees = {name: ast.parse(text) for name, text in texts.items() if "__main__" in text}
    return {name: (ast.get_docstring(tree) or "").split("\n")[0] for name, tree in trees.items()}


def run(name: str, arguments: list[str]) -> int:
    """In a process of its own: peak memory and warm-up are each benchmark's."""
    print(f"== {name}", flush=True)
    return subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
