"""The learning rate over a run, as a function of how much of the run is done.

No state is carried from round to round: a site that trains round r again, after a crash or in a
repeated round, uses the same rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from primia.learning.config import Schedule

LEAST_WARM_UP = 0.01  # the factor that a warm-up begins with


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a run that a round is: from ``start`` to ``end``, both within 0 to 1."""

    start: float = 0.0
    end: float = 1.0

    @classmethod
    def of_round(cls, done: int, planned: int) -> Span:
        """After ``done`` of ``planned`` rounds."""
        start = min(done, planned - 1)
        return cls(start / planned, (start + 1) / planned)

    def at(self, step: int, steps: int) -> float:
        """The run's progress before batch ``step`` (0-based) of the round."""
        return self.start + (self.end - self.start) * step / steps


def rate_factor(schedule: Schedule, progress: float) -> float:
    """The factor of the learning rate, above 0 and at most 1; ``progress``: 0 to below 1.

    Linear warm-up, then ``restarts + 1`` equal descents from 1 to ``final``: linear, along a half
    cosine (Loshchilov and Hutter, SGDR, 2017), or linear in the logarithm.
    """
    if progress < schedule.warm_up:
        return max(LEAST_WARM_UP, progress / schedule.warm_up)
    left = (progress - schedule.warm_up) / (1 - schedule.warm_up)  # in [0, 1)
    within = (left * (schedule.restarts + 1)) % 1.0
    if schedule.kind == "linear":
        return 1 - (1 - schedule.final) * within
    if schedule.kind == "cosine":
        return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * within)) / 2
    if schedule.kind == "log_linear":
        return math.exp(math.log(schedule.final) * within)
    return 1.0
