"""How far one update may reach: checked at the node before it masks, since nobody can afterwards;
and by the owner in what it sees, a plain update or the exponents that a secure one is scaled by."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from primia.aggregation.errors import InvalidUpdate
from primia.aggregation.quantise import Exponents
from primia.aggregation.terms import GroupName, Groups
from primia.aggregation.wire import chunks

# A round that moves the parameters by ten times their own length has diverged.
PROPORTION = 10.0
# Running variances grow from 1 to what a layer sees. A quantisation step of 2^20 is 2^-11 units.
LEAST_OF_BUFFERS = 2.0**20


@dataclass(frozen=True, slots=True)
class Bounds:
    """Largest L2 norms of a change, of the parameters and of the buffers."""

    parameters: float
    buffers: float

    def exponents(self) -> Exponents:
        """The largest that a change within the bounds needs (quantise.exponents)."""
        return math.frexp(self.parameters)[1], math.frexp(self.buffers)[1]

    def check_exponents(self, found: Exponents) -> None:
        """Raises ``InvalidUpdate`` for exponents of a change beyond the bounds: the largest of a
        round decides how finely all its sites' changes are added."""
        for name, exponent, largest in zip(
            ("parameters", "buffers"), found, self.exponents(), strict=True
        ):
            if exponent > largest:
                raise InvalidUpdate(
                    f"The exponent {exponent} of the {name} is that of a change beyond the run's "
                    f"bound; {largest} is the largest.",
                    hint="A site whose change is that large stays out of the round.",
                )


@dataclass(slots=True)
class Norms:
    """L2 norms of a vector that comes in pieces, of shape (groups.size,) in all."""

    groups: Groups
    at: int = 0
    _squares: dict[GroupName, float] = field(
        default_factory=lambda: {"parameters": 0.0, "buffers": 0.0}
    )

    @classmethod
    def of(cls, vector: NDArray[np.float32], groups: Groups) -> Norms:
        found = cls(groups)
        for _, values in chunks(vector, groups.size, "<f4"):
            found.add(values)
        return found

    def add(self, values: NDArray[np.float32]) -> None:
        """The next values of the vector; raises ``InvalidUpdate``, naming the index of the first
        that is NaN or infinite."""
        cut = min(max(self.groups.parameters - self.at, 0), len(values))
        self._add("parameters", values[:cut], self.at)
        self._add("buffers", values[cut:], self.at + cut)
        self.at += len(values)

    def _add(self, name: GroupName, values: NDArray[np.float32], start: int) -> None:
        if not len(values):
            return
        wide = values.astype(np.float64)  # the square of a float32 is finite in float64
        square = float(wide @ wide)
        if not math.isfinite(square):
            index = start + int(np.argmin(np.isfinite(values)))
            raise InvalidUpdate(
                f"The update is not finite (NaN or infinity) at index {index}.",
                hint="Training has diverged or met a broken image; a right update is accepted.",
                index=index,
            )
        self._squares[name] += square

    @property
    def parameters(self) -> float:
        return math.sqrt(self._squares["parameters"])

    @property
    def buffers(self) -> float:
        return math.sqrt(self._squares["buffers"])

    def bounds(self, stated: float | None) -> Bounds:
        """Of a change to this vector: of the parameters as stated, or in proportion to them."""
        parameters = PROPORTION * max(1.0, self.parameters) if stated is None else stated
        return Bounds(parameters, max(LEAST_OF_BUFFERS, PROPORTION * self.buffers))

    def check(self, bounds: Bounds) -> None:
        """Raises ``InvalidUpdate`` for a change beyond the bounds."""
        for name, found, bound in (
            ("parameters", self.parameters, bounds.parameters),
            ("buffers", self.buffers, bounds.buffers),
        ):
            if found > bound:
                raise InvalidUpdate(
                    f"The change of the {name} has a norm of {found:.3g}; the run's bound is "
                    f"{bound:.3g}.",
                    hint="Training has probably diverged: lower the learning rate.",
                )


def check_norm(
    change: NDArray[np.float32],
    weights: NDArray[np.float32],
    groups: Groups,
    stated: float | None = None,
) -> None:
    """Raises ``InvalidUpdate`` for a change of the weights beyond their bounds, or not finite."""
    Norms.of(change, groups).check(Norms.of(weights, groups).bounds(stated))
