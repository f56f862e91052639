"""Geometric variations as one sampling grid an image, so that each image is interpolated once.

A grid says for every output pixel where in the input it comes from, in torch's normalised
coordinates: -1 and 1 are the outer edges, x before y. Affine parts act on coordinates of the whole
image, displacements are added to them. Beyond the edges the edge is repeated.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from primia.learning.config import Augmentation

GRID_CELLS = 5
ELASTIC_KNOTS = 6  # control points a side of the smooth displacement field


class Draws:
    """Uniform numbers for each image of a batch, from one generator, where the images lie."""

    def __init__(self, count: int, generator: torch.Generator, device: torch.device) -> None:
        self.count, self._generator, self._device = count, generator, device

    def uniform(self, *shape: int) -> Tensor:
        """(N, *shape) in [0, 1)"""
        values = torch.empty(self.count, *shape).uniform_(generator=self._generator)
        return values.to(self._device)

    def around(self, reach: float, *shape: int) -> Tensor:
        """(N, *shape) in [-reach, reach)"""
        return reach * (2 * self.uniform(*shape) - 1)

    def happens(self, chance: float) -> Tensor:
        """bool (N,)"""
        return self.uniform() < chance

    def normal(self, *shape: int) -> Tensor:
        values = torch.empty(self.count, *shape).normal_(generator=self._generator)
        return values.to(self._device)


def warps(config: Augmentation) -> bool:
    """Whether anything but mirroring, flipping and moving by whole pixels is asked for."""
    return any(
        (
            config.rotation,
            config.scale,
            config.shear,
            config.crop,
            config.elastic,
            config.grid,
            config.optical,
        )
    )


def warp(images: Tensor, config: Augmentation, draws: Draws) -> Tensor:
    """Images (N, C, S, S), each through a grid of its own."""
    return _sampled(images, _grid(images, config, draws), "bilinear")


def warp_both(
    images: Tensor, masks: Tensor, config: Augmentation, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Images (N, C, S, S) and masks (N, 1, S, S) through the same grids; a mask's pixel is that of
    the nearest one."""
    grid = _grid(images, config, draws)
    return _sampled(images, grid, "bilinear"), _sampled(masks, grid, "nearest")


def _sampled(images: Tensor, grid: Tensor, mode: str) -> Tensor:
    return functional.grid_sample(
        images, grid, mode=mode, padding_mode="border", align_corners=False
    )


def _grid(images: Tensor, config: Augmentation, draws: Draws) -> Tensor:
    """(N, S, S, 2)"""
    grid = functional.affine_grid(
        _affine(config, draws), list(images.shape), align_corners=False
    )  # (N, S, S, 2)
    if config.optical:
        grid = _optical(grid, draws.around(config.optical))
    if config.grid:
        grid = grid + _field(config.grid * 2 / GRID_CELLS, GRID_CELLS + 1, images, draws)
    if config.elastic:
        grid = grid + _field(2 * config.elastic, ELASTIC_KNOTS, images, draws)
    return grid


def _affine(config: Augmentation, draws: Draws) -> Tensor:
    """(N, 2, 3): crop, scale, shear, rotation, mirror and flip, then translation."""
    angle = draws.around(math.radians(config.rotation))
    shear = torch.tan(draws.around(math.radians(config.shear)))
    scale, cut = 1 + draws.around(config.scale), config.crop * draws.uniform()
    size = scale * (1 - cut)
    across = torch.where(draws.happens(config.mirror), -1.0, 1.0)
    down = torch.where(draws.happens(config.flip), -1.0, 1.0)
    free = (2 * config.translation + scale * cut)[:, None]
    move = free * (2 * draws.uniform(2) - 1)  # (N, 2): where the cut lies, and the translation
    cosine, sine = torch.cos(angle), torch.sin(angle)
    matrix = torch.stack(
        [
            torch.stack([cosine * across, (cosine * shear - sine) * down, move[:, 0]], dim=1),
            torch.stack([sine * across, (sine * shear + cosine) * down, move[:, 1]], dim=1),
        ],
        dim=1,
    )
    matrix[:, :, :2] *= size[:, None, None]
    return matrix


def _optical(grid: Tensor, strength: Tensor) -> Tensor:
    """Radial distortion: r becomes r (1 + k r²), barrel or pincushion."""
    square = (grid**2).sum(dim=-1, keepdim=True)
    return grid * (1 + strength[:, None, None, None] * square)


def _field(reach: float, knots: int, images: Tensor, draws: Draws) -> Tensor:
    """(N, S, S, 2): displacements drawn for knots x knots points, the outer ones on the edges, and
    spread smoothly over the image; none beyond the reach, as cubics would have it."""
    size = images.shape[-1]
    drawn = draws.around(reach, 2, knots, knots)
    field = functional.interpolate(drawn, size=(size, size), mode="bicubic", align_corners=True)
    return field.clamp(-reach, reach).permute(0, 2, 3, 1)
