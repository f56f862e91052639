"""A benchmark of several groups of figures: its options; a group that fails spoils no other."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.bed.report import choose


def parser(description: str | None, groups: Mapping[str, str]) -> argparse.ArgumentParser:
    """With the options that every such benchmark has. ``groups``: name -> what it measures."""
    lines = "\n".join(f"  {name:12}{text}" for name, text in groups.items())
    made = argparse.ArgumentParser(
        description=f"{(description or '').splitlines()[0]}\n\ngroups:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--only", nargs="+", default=[], metavar="GROUP")
    made.add_argument("--folder", type=Path, help="for state; several GB. Default: the system's")
    return made


def run(
    only: Sequence[str],
    groups: Mapping[str, str],
    run_group: Callable[[str], None],
    say: Callable[[str], None],
    missing: Callable[[str, str], None],
) -> None:
    """``missing`` is told the group and the reason where it cannot be measured."""
    for group in choose(only, tuple(groups)):
        say(f"{group}: {groups[group]}")
        try:
            run_group(group)
        except Exception as error:  # noqa: BLE001 - the other groups still have something to say
            missing(group, f"{type(error).__name__}: {error}"[:300])
