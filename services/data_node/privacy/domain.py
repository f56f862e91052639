"""This site's own limits on what it gives away; nothing that an owner sends changes them."""

from __future__ import annotations

from primia.errors import Conflict


class BelowMinimum(Conflict):
    """Too few images here to take part in a sum."""

    code = "below-minimum"
    title = "Too few images at this site"


def check_minimum(images: int, minimum: int) -> None:
    """Raises BelowMinimum. The number itself stays here: the owner learns that it is too small."""
    if images < minimum:
        raise BelowMinimum(
            f"This site gives statistics of at least {minimum} training images; the data set has "
            f"{images}.",
            hint="Choose another data set, or lower PRIMIA_STATISTICS_MINIMUM.",
        )
