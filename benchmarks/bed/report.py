"""Figures of a benchmark: a table for people, JSON for machines, with how each was measured."""

from __future__ import annotations

import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parents[1] / "results"


@dataclass
class Figure:
    """``values``: one a repetition, whose median is ``value``; None with a reason in ``note`` where
    it could not be measured. ``at_most``/``at_least``: the limit that it is held against."""

    group: str
    name: str
    unit: str
    command: str
    values: list[float] = field(default_factory=list)
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def value(self) -> float | None:
        return statistics.median(self.values) if self.values else None

    @property
    def met(self) -> bool | None:
        if self.value is None or (self.at_most is None and self.at_least is None):
            return None
        below = self.at_most is None or self.value <= self.at_most
        return below and (self.at_least is None or self.value >= self.at_least)


class Report:
    """Collects figures; written after each one, so that a broken run leaves what it had."""

    def __init__(self, name: str, module: str) -> None:
        self.path = RESULTS / f"{name}.json"
        self.module = module
        self.figures: list[Figure] = []
        self.series: dict[str, Any] = {}
        self.console = Console(width=None if sys.stdout.isatty() else 150)
        RESULTS.mkdir(parents=True, exist_ok=True)

    def command(self, *options: str) -> str:
        return shlex.join(["python", "-m", self.module, *options])

    def add(self, figure: Figure) -> Figure:
        self.figures.append(figure)
        self.console.print(f"  {figure.group}: {figure.name}  [bold]{shown(figure)}[/]")
        self.write()
        return figure

    def keep(self, name: str, value: Any) -> None:
        """A series for a plot."""
        self.series[name] = value
        self.write()

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{datetime.now(UTC):%H:%M:%S}[/] {text}")

    def find(self, group: str, name: str) -> float | None:
        for figure in self.figures:
            if (figure.group, figure.name) == (group, name):
                return figure.value
        return None

    def write(self) -> None:
        document = {
            "command": shlex.join(["python", "-m", self.module, *sys.argv[1:]]),
            "machine": machine(),
            "figures": [{**asdict(f), "value": f.value, "met": f.met} for f in self.figures],
            "series": self.series,
        }
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(document, indent=1) + "\n")
        partial.replace(self.path)

    def table(self) -> None:
        table = Table(title=f"{self.module}, {machine()['processor']}, {os.cpu_count()} cores")
        for column, justify in (("figure", "left"), ("median", "right"), ("must", "right")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        table.add_column("runs: least to most", justify="right")
        table.add_column("note")
        group = ""
        for figure in self.figures:
            if figure.group != group:
                table.add_section()
                table.add_row(f"[bold]{figure.group}[/]")
                group = figure.group
            table.add_row(
                f"  {figure.name}", shown(figure), limit(figure), spread(figure), figure.note
            )
        self.console.print(table)
        self.console.print(f"Written to {self.path}")


def shown(figure: Figure) -> str:
    value = figure.value
    if value is None:
        return "–"
    text = f"{number(value)} {figure.unit}"
    return {None: text, True: f"[green]{text}[/]", False: f"[red]{text}[/]"}[figure.met]


def number(value: float) -> str:
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    if abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:,.3f}" if abs(value) < 10 else f"{value:,.1f}"


def limit(figure: Figure) -> str:
    if figure.at_most is not None:
        return f"≤ {figure.at_most:g} {figure.unit}"
    return f"≥ {figure.at_least:g} {figure.unit}" if figure.at_least is not None else ""


def spread(figure: Figure) -> str:
    if len(figure.values) < 2:
        return "1 run" if figure.values else ""
    return f"{len(figure.values)}: {number(min(figure.values))} to {number(max(figure.values))}"


def machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "version": _version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "")


def _version() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=RESULTS.parent,
        capture_output=True,
        text=True,
    )
    return found.stdout.strip()


def end_on_signal() -> None:
    """A benchmark that is terminated ends its services and networks too."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))


def choose(only: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The groups asked for, all where none is named."""
    wrong = sorted(set(only) - set(known))
    if wrong:
        raise SystemExit(f"Unknown: {', '.join(wrong)}. Known: {', '.join(known)}.")
    return tuple(name for name in known if not only or name in only)
