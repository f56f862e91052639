"""Plots as PNG bytes, drawn without a display and without global state of matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

Points = Sequence[tuple[float, float]]
Grey = NDArray[np.floating[Any]]


def curves(lines: Mapping[str, Points], across: str, up: str) -> bytes:
    """One line a name; lines without points are left out."""
    figure = Figure(figsize=(5.5, 3.5), layout="constrained")
    axes = figure.add_subplot(xlabel=across, ylabel=up)
    for name, points in lines.items():
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
    axes.grid(alpha=0.3)
    if any(lines.values()):
        axes.legend(fontsize="small")
    return _png(figure)


def diagonal(lines: Mapping[str, Points], across: str, up: str) -> bytes:
    """Lines in the unit square, with its diagonal: ROC and reliability."""
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.add_subplot(xlabel=across, ylabel=up, xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    for name, points in lines.items():
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", markersize=3, label=name)
    axes.legend(fontsize="small", loc="lower right")
    return _png(figure)


def matrix(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    down: str,
    across: str,
    form: str = "{:.2f}",
) -> bytes:
    """Cells shaded from the least to the greatest value, with their values."""
    numbers = [[float("nan") if cell is None else cell for cell in row] for row in values]
    width, height = 1.6 + 0.9 * len(columns), 1.2 + 0.55 * len(rows)
    figure = Figure(figsize=(max(3.2, width), max(2.6, height)), layout="constrained")
    axes = figure.add_subplot(xlabel=across, ylabel=down)
    axes.imshow(numbers, cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=20, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    present = [cell for row in values for cell in row if cell is not None]
    middle = (min(present) + max(present)) / 2 if present else 0.0
    for y, row in enumerate(values):
        for x, cell in enumerate(row):
            text = "–" if cell is None else form.format(cell)
            dark = cell is not None and cell > middle
            axes.text(x, y, text, ha="center", va="center", color="white" if dark else "black")
    return _png(figure)


def bars(values: Mapping[str, float], across: str) -> bytes:
    """Horizontal bars, the greatest on top."""
    ordered = sorted(values.items(), key=lambda pair: pair[1])
    figure = Figure(figsize=(5.5, 1.2 + 0.35 * max(1, len(ordered))), layout="constrained")
    axes = figure.add_subplot(xlabel=across)
    axes.barh([name for name, _ in ordered], [value for _, value in ordered])
    return _png(figure)


def pictures(rows: Mapping[str, Sequence[Grey]]) -> bytes:
    """Grey images (S, S), from 0 (black) to 1 (white), in rows with names."""
    columns = max(1, *(len(row) for row in rows.values())) if rows else 1
    figure = Figure(figsize=(2.4 + 0.8 * columns, 0.3 + 0.85 * len(rows)), layout="constrained")
    cells = figure.subplots(max(1, len(rows)), columns, squeeze=False)
    for axes in cells.flat:
        axes.set_axis_off()
    for (name, row), line in zip(rows.items(), cells, strict=False):
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right", va="center")
        for image, axes in zip(row, line, strict=False):
            axes.imshow(image, cmap="gray", vmin=0, vmax=1)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    for text in figure.findobj(Text):  # names are names: "$" in one begins no formula
        text.set_parse_math(False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(  # type: ignore[no-untyped-call]
        buffer, metadata={"Software": None}, pil_kwargs={"optimize": True}
    )
    return buffer.getvalue()
