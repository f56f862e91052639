"""Plots of benchmarks/results/inference.json: python -m benchmarks.inference_plots"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.bed.report import RESULTS

matplotlib.use("Agg")
from matplotlib import pyplot

Row = list[float]


def draw(path: Path) -> list[Path]:
    """One PNG for each question that the file has figures for."""
    document = json.loads(path.read_text())
    series, made = document["series"], []
    delays, rates = _systems(document)
    if any(len(points) > 1 for points in delays.values()):
        made.append(_lines("delay", delays, series, "one-way delay (ms)", "linear"))
    if any(len(points) > 1 for points in rates.values()):
        made.append(_lines("rate", rates, series, "rate between the parties (Mbit/s)", "log"))
    batches = {"ResNet-18": series.get("batch", [])}
    sides = {
        "ResNet-18": series.get("sides_resnet18", []),
        "LeNet-5": series.get("sides_lenet", []),
    }
    for name, models, label in (
        ("batch", batches, "images in a session"),
        ("sides", sides, "pixels a side"),
    ):
        if any(len(rows) > 1 for rows in models.values()):
            made.append(_scaling(name, models, label))
    if "breakdown" in series:
        made.append(_breakdown(series["breakdown"]))
    return made


def _systems(document: dict[str, Any]) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
    """System -> [(delay or rate, seconds)]."""
    series = document["series"]
    measured = {"fss": _ours(document) + series.get("sweep", [])}
    measured["SecureNN"] = series.get("securenn", []) + series.get("sweep_securenn", [])
    measured["CrypTen"] = [row[:3] for row in series.get("crypten", [])]
    # One figure a place: the sweep's, measured on the same hosts as its others.
    once = {
        system: {(row[0], row[1]): row[2] for row in rows}.items()
        for system, rows in measured.items()
    }
    delays = {
        system: sorted([delay, value] for (delay, rate), value in rows if not rate)
        for system, rows in once.items()
    }
    rates = {
        system: sorted([rate, value] for (_, rate), value in rows if rate)
        for system, rows in once.items()
    }
    return delays, rates


def _ours(document: dict[str, Any]) -> list[Row]:
    known = {
        ("loopback", "online, exact"): (0, 0),
        ("delay", "online, 10 ms one way"): (10, 0),
        ("delay", "online, 100 ms one way"): (100, 0),
        ("delay", "online, 100 Mbit/s"): (0, 100),
    }
    found = []
    for figure in document["figures"]:
        place = known.get((figure["group"], figure["name"]))
        if place and figure["value"] is not None:
            found.append([*place, figure["value"]])
    return found


def _lines(
    name: str, systems: dict[str, list[Row]], series: dict[str, Any], label: str, scale: str
) -> Path:
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for (system, points), colour in zip(systems.items(), ("C0", "C2", "C3"), strict=True):
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=system)
    for system, colour in (("SecureNN", "C2"), ("CrypTen", "C3")):
        points = _computed(series, system, systems[system], rate=name == "rate")
        if points:
            label_of = f"{system}, from rounds and bytes"
            axes.plot(*zip(*points, strict=True), "x--", color=colour, alpha=0.5, label=label_of)
    axes.set(xlabel=label, ylabel="online seconds of one image", xscale=scale, yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return _save(figure, f"inference-{name}")


def _computed(series: dict[str, Any], system: str, measured: list[Row], *, rate: bool) -> list[Row]:
    """Where a system takes too long to be waited for, joined to what was measured."""
    rows = [row[1:] for row in series.get("sweep_computed", []) if row[0] == system]
    places = [[row[1 if rate else 0], row[2]] for row in rows if bool(row[1]) == rate]
    return sorted([*places, *measured]) if places else []


def _scaling(name: str, models: dict[str, list[Row]], label: str) -> Path:
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    each = " an image" if name == "batch" else ""
    for colour, (model, rows) in zip(("C0", "C1"), models.items(), strict=False):
        if not rows:
            continue
        places = [row[0] for row in rows]
        for at, style, part in ((1, "o-", "online"), (2, "s--", "everything")):
            values, told = [row[at] for row in rows], f"{model}, {part}{each}"
            axes.plot(places, values, style, color=colour, label=told)
    axes.set(xlabel=label, ylabel="seconds", xscale="log", yscale="log")
    places = sorted({row[0] for rows in models.values() for row in rows})
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.minorticks_off()
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return _save(figure, f"inference-{name}")


def _breakdown(rows: list[dict[str, Any]]) -> Path:
    """``rows``: a request each, with the seconds of every part."""
    figure, axes = pyplot.subplots(figsize=(7, 6), layout="constrained")
    parts = [key for key in rows[0] if key not in ("layer", "bytes")]
    left = [0.0] * len(rows)
    places = range(len(rows))
    for part in parts:
        values = [row[part] for row in rows]
        axes.barh(places, values, left=left, label=part)
        left = [start + value for start, value in zip(left, values, strict=True)]
    axes.set_yticks(places, [row["layer"] for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="seconds")
    axes.legend()
    return _save(figure, "inference-breakdown")


def _save(figure: Any, name: str) -> Path:
    path = RESULTS / f"{name}.png"
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


if __name__ == "__main__":
    for drawn in draw(RESULTS / "inference.json"):
        print(drawn)
