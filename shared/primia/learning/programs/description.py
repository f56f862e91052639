"""A program in lines that a person can read before approving it; nothing here imports torch."""

from __future__ import annotations

from primia.learning.programs import document as d
from primia.learning.programs.document import Program, Shape
from primia.learning.programs.shapes import follow


def lines(program: Program) -> list[str]:
    """A line a step: ``3: conv2d block1.conv of 2: 16 × 32 × 32 (given=8, kernel=3 × 3 …)``."""
    layers = {layer.path: layer for layer in program.layers}
    sizes = follow(program)
    found = [f"0: image: {_size(sizes[0])}"]
    for number, step in enumerate(program.steps, 1):
        part: d.Part = step
        name: str = step.op
        if isinstance(step, d.Apply):
            layer = part = layers[step.layer]
            name = f"{layer.kind} {layer.path}"
        of = ", ".join(map(str, d.sources(step)))
        settings = ", ".join(
            f"{key}={_size(value) if isinstance(value, tuple) else value}"
            for key, value in part
            if key not in ("kind", "op", "of", "path", "layer")
        )
        end = f" ({settings})" if settings else ""
        found.append(f"{number}: {name} of {of}: {_size(sizes[number])}{end}")
    return found


def _size(shape: Shape) -> str:
    return " × ".join(map(str, shape))
