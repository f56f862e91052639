"""Statistics of images as sums of integers, so that the sums of several sites are exact.

A site measures one vector of uint64: images of each class (K), Σ v and Σ v² of each channel over
all pixels v (uint8) at the training size (C and C), and Σ width, Σ height, Σ width², Σ height² of
the images as they came: K + 2 C + 4 values. The vectors of all sites are added (securely: then
nobody sees one of them), and ``Statistics.of`` computes from the sum alone, in integers until the
last division, what the images of all sites together have.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from primia.errors import InvalidInput
from primia.learning.images import Pixels
from primia.learning.spec import MAX_CLASSES, Checked

_CHUNK = 256
_SIZES = 4
# The plan compiler expects normalised pixels within this many units of zero (mpc.compile_bounds).
_REACH = 4.0
_LEAST_DEVIATION = 0.01

Sums = NDArray[np.uint64]
Count = Annotated[int, Field(ge=0, lt=2**63)]
PerChannel = Annotated[
    tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1, max_length=3)
]


class Contradictory(InvalidInput):
    """Sums that no images can have."""

    code = "contradictory-statistics"
    title = "The statistics contradict themselves"


class Moments(Checked):
    mean: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    deviation: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Statistics(Checked):
    """Of the training images of all sites together: population mean and standard deviation of each
    channel in [0, 1], weighted by images; images of each class in the order of the model's classes;
    width and height in pixels before resizing."""

    counts: Annotated[tuple[Count, ...], Field(min_length=2, max_length=MAX_CLASSES)]
    mean: PerChannel
    deviation: PerChannel
    width: Moments
    height: Moments

    @property
    def images(self) -> int:
        return sum(self.counts)

    @classmethod
    def of(cls, total: Sums, classes: int, channels: int, size: int) -> Self:
        """From the sum over all sites. Raises Contradictory for sums that no images can have."""
        values = [int(value) for value in total]
        if len(values) != length(classes, channels):
            raise InvalidInput(f"Statistics have {length(classes, channels)} sums.")
        images = sum(values[:classes])
        if images == 0:
            raise Contradictory("The statistics are over no images.")
        sums = values[classes : classes + channels]
        squares = values[classes + channels : classes + 2 * channels]
        pixels = images * size * size
        colour = [
            _moments(first, second, pixels, 255)
            for first, second in zip(sums, squares, strict=True)
        ]
        if any(each.mean > 1 for each in colour):
            raise Contradictory("The statistics have a mean above the largest pixel.")
        wide, high, wide2, high2 = values[-_SIZES:]
        try:
            return cls(
                counts=tuple(values[:classes]),
                mean=tuple(each.mean for each in colour),
                deviation=tuple(each.deviation for each in colour),
                width=_moments(wide, wide2, images, 1),
                height=_moments(high, high2, images, 1),
            )
        except ValidationError as error:
            raise Contradictory(
                "The statistics are out of range: a site's sums are wrong"
            ) from error

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, std) a channel for the model's input: as measured, but with a deviation so large
        that no pixel lies past 4 units, which is what encrypted inference takes."""
        least = [max(_LEAST_DEVIATION, mean / _REACH, (1 - mean) / _REACH) for mean in self.mean]
        std = [max(found, floor) for found, floor in zip(self.deviation, least, strict=True)]
        return self.mean, tuple(std)

    def class_weights(self) -> tuple[float, ...]:
        """images / (classes · images of the class), so that each class weighs the same in the loss.

        Raises InvalidInput where no site has an image of a class.
        """
        if 0 in self.counts:
            raise InvalidInput(
                "A class has no training image at any site: it cannot be weighted.",
                hint="Train without class weights, or leave the class out.",
            )
        return tuple(self.images / (len(self.counts) * count) for count in self.counts)


def length(classes: int, channels: int) -> int:
    """Values of a site's vector."""
    return classes + 2 * channels + _SIZES


def measure(
    pixels: Pixels, labels: NDArray[np.int64], sizes: NDArray[np.int64], classes: int
) -> Sums:
    """A site's vector. ``pixels`` (N, C, S, S), may be mapped; ``labels`` (N,); ``sizes`` (N, 2):
    width and height."""
    counts = np.bincount(labels, minlength=classes)  # (classes,)
    seen = np.zeros((pixels.shape[1], 256), dtype=np.int64)  # how often each channel has each value
    for start in range(0, len(pixels), _CHUNK):
        for channel, values in enumerate(pixels[start : start + _CHUNK].swapaxes(0, 1)):
            seen[channel] += np.bincount(values.ravel(), minlength=256)
    grey = np.arange(256, dtype=np.int64)
    parts = (counts, seen @ grey, seen @ grey**2, sizes.sum(axis=0), (sizes**2).sum(axis=0))
    return np.concatenate(parts).astype(np.uint64)


def _moments(first: int, second: int, count: int, unit: int) -> Moments:
    """Of ``count`` values with these sums of values and squares, divided by ``unit``."""
    spread = Fraction(count * second - first * first, count * count * unit * unit)
    if spread < 0:
        raise Contradictory("The statistics have a variance below zero.")
    return Moments(mean=first / (count * unit), deviation=math.sqrt(spread))
