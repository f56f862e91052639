"""Online time against delay and rate, for the plots: fss, SecureNN and CrypTen.

Measured where a row takes seconds, and computed where it would take minutes: time without delay,
plus counted rounds over the delay, plus counted bytes over the rate. A computed row says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.bed.encrypted import Answer
from benchmarks.bed.workbench import Bench

# (one-way delay in ms, Mbit/s or 0): what other groups measure already is not measured again.
DELAYS = (25.0, 50.0, 200.0)
RATES = (10.0, 30.0, 300.0, 1000.0, 10_000.0)
MORE = ((0.0, 100.0),)  # of fss measured by "delay", of the others here
# One-way delays one after another in an inference of ResNet-18 by SecureNN (docs/securenn.md).
SECURENN_ROUNDS = 208
# Over this many seconds a row is computed, and over a tenth of it measured once.
_LONGEST = 100.0
_SECURENN_LINK_BYTES = 180 * 2_899_456  # of one line, at 224 x 224

Apart = Callable[..., list[Answer]]


@dataclass(frozen=True)
class Counted:
    """A system's online seconds without delay, one-way delays on its way, bytes of one line."""

    seconds: float
    rounds: float
    bytes: float

    def over(self, delay: float, mbit: float) -> float:
        """Seconds over a line. ``delay``: ms one way; ``mbit``: Mbit/s, 0 for no limit."""
        moving = self.bytes / (mbit * 125_000) if mbit else 0.0
        return self.seconds + self.rounds * delay / 1000 + moving

    def told(self) -> str:
        return (
            f"computed: {self.seconds:.1f} s without delay, {self.rounds:.0f} one-way delays, "
            f"{self.bytes / 1e6:.0f} MB"
        )


def network_name(delay: float, mbit: float) -> str:
    parts = [f"{delay:g} ms one way"] if delay else []
    parts += [f"{mbit:g} Mbit/s"] if mbit else []
    return ", ".join(parts) or "no added delay"


def points() -> list[tuple[float, float]]:
    return [(delay, 0.0) for delay in DELAYS] + [(0.0, rate) for rate in RATES]


def sweep(bench: Bench, apart: Apart) -> None:
    _fss(bench, apart)
    _securenn(bench, apart)
    _crypten(bench)


def _fss(bench: Bench, apart: Apart) -> None:
    first = _online(apart(bench, 0, 0, min(2, bench.given.repeats)))
    series = [[0.0, 0.0, float(np.median(first))]]
    bench.figure("sweep", "online, no added delay", "s", first)
    for delay, mbit in points():
        if bench.left() < 60:
            bench.missing("sweep", network_name(delay, mbit), "the budget is used up")
            continue
        slow = delay >= 100 or 0 < mbit <= 30
        online = _online(apart(bench, delay, mbit, 1 if slow else min(2, bench.given.repeats)))
        note = "1 run: a slow line" if slow else ""
        bench.figure("sweep", f"online, {network_name(delay, mbit)}", "s", online, note=note)
        series.append([delay, mbit, float(np.median(online))])
        bench.report.keep("sweep", series)


def _securenn(bench: Bench, apart: Apart) -> None:
    """Its lines to the crypto provider are as slow as the one between the parties."""
    first = _online(apart(bench, 0, 0, 1, protocol="securenn"))
    size = _SECURENN_LINK_BYTES * (bench.given.size / 224) ** 2
    counted = Counted(first[0], SECURENN_ROUNDS, size)
    series = [[0.0, 0.0, first[0]]]
    for delay, mbit in (*points(), *MORE):
        name = f"SecureNN, {network_name(delay, mbit)}"
        expected = counted.over(delay, mbit)
        if expected > min(_LONGEST, bench.left() - 30):
            bench.figure("sweep", name, "s", [expected], note=counted.told())
            _append(bench, "sweep_computed", ["SecureNN", delay, mbit, expected])
            continue
        answers = apart(bench, delay, mbit, 1, warm=False, protocol="securenn")
        online = _online(answers)
        bench.figure("sweep", name, "s", online, note="1 run: a slow row")
        series.append([delay, mbit, float(np.median(online))])
        bench.report.keep("sweep_securenn", series)


def _crypten(bench: Bench) -> None:
    """Its slowest rows take hours."""
    known: Sequence[Sequence[float]] = bench.report.series.get("crypten", [])
    counted = crypten_counted(known)
    if counted is None:
        reason = "computed from the group crypten, which has not measured it without delay"
        bench.missing("sweep", "CrypTen", reason)
        return
    measured = {(row[0], row[1]) for row in known}
    for delay, mbit in (*points(), *MORE):
        if (delay, mbit) in measured:
            continue
        seconds = counted.over(delay, mbit)
        name = f"CrypTen, {network_name(delay, mbit)}"
        bench.figure("sweep", name, "s", [seconds], note=counted.told())
        _append(bench, "sweep_computed", ["CrypTen", delay, mbit, seconds])


def crypten_counted(rows: Sequence[Sequence[float]]) -> Counted | None:
    """``rows``: (delay, rate, seconds, rounds, bytes of a party), measured."""
    for delay, mbit, seconds, rounds, size in rows:
        if not delay and not mbit:
            return Counted(seconds, rounds, size)
    return None


def _append(bench: Bench, name: str, row: list[float | str]) -> None:
    bench.report.keep(name, [*bench.report.series.get(name, []), row])


def _online(answers: Sequence[Answer]) -> list[float]:
    return [answer.cost.online_seconds for answer in answers]
