"""This site's own limits on what it gives away; nothing that an owner sends changes them."""

from __future__ import annotations

from collections.abc import Sequence

from primia.errors import Conflict
from primia.learning.accounting import Release, epsilon


class BelowMinimum(Conflict):
    """Too few images here to take part in a sum."""

    code = "below-minimum"
    title = "Too few images at this site"


class BudgetExceeded(Conflict):
    """The run would cost more privacy than this site allows its owner on this data set."""

    code = "privacy-budget-exceeded"
    title = "The site's privacy limit does not allow the run"


def check_minimum(images: int, minimum: int) -> None:
    """Raises BelowMinimum. The number itself stays here: the owner learns that it is too small."""
    if images < minimum:
        raise BelowMinimum(
            f"This site gives statistics of at least {minimum} training images; the data set has "
            f"{images}.",
            hint="Choose another data set, or lower PRIMIA_STATISTICS_MINIMUM.",
        )


def check_budget(
    spent: Sequence[Release], wanted: Release | None, limit: float | None, delta: float
) -> None:
    """``wanted``: what is to be released in addition, None for training without noise.

    Raises BudgetExceeded where both together would cost more than ``limit`` (None: no limit).
    """
    if limit is None:
        return
    if wanted is None:
        raise BudgetExceeded(
            f"This site takes part only in what costs its images at most ε = {limit:g} in all; "
            "training without noise and exact statistics have no ε.",
            hint="Propose the run with privacy.dp_sgd and without statistics.",
        )
    already, after = epsilon(spent, delta), epsilon([*spent, wanted], delta)
    if after > limit:
        raise BudgetExceeded(
            f"After ε = {already:.3g} this would bring the data set to ε = {after:.3g} at "
            f"δ = {delta:g}; this site allows {limit:g} to this owner.",
            hint="Allow for more noise, fewer rounds, or raise PRIMIA_PRIVACY_EPSILON.",
        )
