"""Coverage-guided fuzzing: ``python -m tests.fuzz [TARGET ...] --seconds 60``.

Needs atheris (``pip install -e '.[fuzz]'``; Linux). Each target runs in a process of its own; a
finding is left as a file in ``build/fuzz`` and ends the run with its trace and exit status 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

FOLDER = Path("build/fuzz")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help="default: all, one after the other")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install -e '.[fuzz]'", file=sys.stderr)
        return 2
    if options.here:
        _fuzz(options.targets[0], options.seconds)
    from tests.fuzz.targets import targets

    chosen = options.targets or list(targets())
    unknown = [name for name in chosen if name not in targets()]
    if unknown:
        print(f"There is no target {unknown[0]}: {', '.join(targets())}.", file=sys.stderr)
        return 2
    command = [sys.executable, "-m", "tests.fuzz", "--here", "--seconds", str(options.seconds)]
    failed = [name for name in chosen if subprocess.run([*command, name], check=False).returncode]
    print(f"{len(chosen)} targets, {len(failed)} with findings {' '.join(failed)}".rstrip())
    return 1 if failed else 0


def _fuzz(name: str, seconds: int) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["primia", "services.model_owner.inference"]):
        from tests.fuzz.targets import attempt, targets
    target = targets()[name]
    corpus = FOLDER / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    longest = 2 * max(len(seed) for seed in target.seeds) + 64
    arguments = [
        sys.argv[0],
        str(corpus),
        f"-max_total_time={seconds}",
        f"-max_len={longest}",
        f"-artifact_prefix={FOLDER}/{name}-",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup(arguments, lambda data: attempt(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
