"""Loss and accuracy over sites; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measure:
    """A site's loss and accuracy over its samples."""

    samples: int
    loss: float | None
    accuracy: float | None


def weighted(measures: Iterable[Measure]) -> Measure:
    """The mean over sites, weighted by samples; None where no site measured."""
    known = [measure for measure in measures if measure.samples > 0]
    return Measure(
        sum(measure.samples for measure in known),
        _mean([(m.loss, m.samples) for m in known if m.loss is not None]),
        _mean([(m.accuracy, m.samples) for m in known if m.accuracy is not None]),
    )


def _mean(values: Sequence[tuple[float, int]]) -> float | None:
    total = sum(samples for _, samples in values)
    return sum(value * samples for value, samples in values) / total if total else None
