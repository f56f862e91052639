"""How far one update may reach: checked at the node before it masks; nobody can afterwards."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from primia.aggregation.errors import InvalidUpdate
from primia.aggregation.terms import Groups

# A round that moves the parameters by ten times their own length has diverged.
PROPORTION = 10.0
_CHUNK = 1 << 18


def bound_of(weights: NDArray[np.float32], groups: Groups, stated: float | None) -> float:
    """Largest L2 norm of a change of the parameters: as stated, or in proportion to the weights."""
    if stated is not None:
        return stated
    return PROPORTION * max(1.0, _norm(weights[: groups.parameters]))


def check_norm(
    change: NDArray[np.float32],
    weights: NDArray[np.float32],
    groups: Groups,
    stated: float | None = None,
) -> None:
    """Raises ``InvalidUpdate`` for a change whose parameters are above ``bound_of``, or not
    finite."""
    found, bound = _norm(change[: groups.parameters]), bound_of(weights, groups, stated)
    if not found <= bound:
        raise InvalidUpdate(
            f"The change has a norm of {found:.3g}; the run's bound is {bound:.3g}.",
            hint="Training has probably diverged: lower the learning rate.",
        )


def _norm(values: NDArray[np.float32]) -> float:
    parts = (values[at : at + _CHUNK].astype(np.float64) for at in range(0, len(values), _CHUNK))
    return math.sqrt(sum(float(part @ part) for part in parts))
