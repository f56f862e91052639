"""What only torch knows of a model, asked of a process that ends again.

torch holds a third of a GB for good. A service that sums and serves weights needs of it but the
layout and the first weights of a model, once. A process that has torch already answers by itself.

    python -m primia.learning.apart [FILE] < spec.json

prints the layout, and writes the first weights to FILE, float32 in the layout's order.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from primia.errors import LocalError
from primia.learning.layout import Layout, Vector
from primia.learning.spec import ModelSpec

_SECONDS = 300


class NoAnswer(LocalError):
    """The process ended without an answer (memory, say); it may be asked again."""

    code = "no-answer-of-torch"
    title = "The model could not be built"


def layout_of(spec: ModelSpec) -> Layout:
    """Raises NoAnswer."""
    if "torch" in sys.modules:
        from primia.learning.models import spec_layout

        return spec_layout(spec)
    return Layout.from_json(_ask(spec))


def first_weights(spec: ModelSpec) -> Vector:
    """The weights that the spec's seed gives, (layout.size,). Raises NoAnswer."""
    if "torch" in sys.modules:
        from primia.learning.models import create_model, flatten

        return flatten(create_model(spec))
    with tempfile.TemporaryDirectory(prefix="primia-weights-") as folder:
        target = Path(folder) / "weights.f4"
        _ask(spec, str(target))
        return np.fromfile(target, dtype="<f4")


def _ask(spec: ModelSpec, *words: str) -> str:
    command = [sys.executable, "-m", "primia.learning.apart", *words]
    try:
        done = subprocess.run(
            command,
            input=spec.model_dump_json(),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"status {error.returncode}"])[-1]
        raise NoAnswer(f"The process that builds models ended: {last[:200]}") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"The process that builds models took over {_SECONDS} s.") from None
    return done.stdout


def main(arguments: list[str]) -> None:
    from primia.learning.models import create_model, flatten, spec_layout

    spec = ModelSpec.parse(sys.stdin.read())
    for name in arguments:
        flatten(create_model(spec)).astype("<f4", copy=False).tofile(name)
    print(spec_layout(spec).to_json())


if __name__ == "__main__":
    main(sys.argv[1:])
