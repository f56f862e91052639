"""Variations of training images, drawn anew for every image of every epoch.

By default light ones, what a radiograph may look like without changing its class: mirrored in half
of the cases, moved by up to a sixteenth of its side (the edge is repeated), contrast and brightness
varied a little. The rest of config.Augmentation is off until it is asked for. Everything drawn
comes from the generator given: the same images for the same state.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from primia.learning.config import Augmentation
from primia.learning.equalisation import clahe
from primia.learning.vision import torchvision_transforms
from primia.learning.warping import Draws, warp, warp_both, warps

BLUR_SIGMA = (0.3, 1.5)  # pixels
SOLARISE_FROM = 0.5
LARGEST_CUT = 4  # a cut-out is at most a fourth of the side


def augment(
    images: Tensor,
    generator: torch.Generator,
    config: Augmentation | None = None,
    mean: float | tuple[float, ...] = 0.5,
    std: float | tuple[float, ...] = 0.25,
) -> Tensor:
    """Normalised images (N, C, S, S) varied one by one; ``mean`` and ``std``, one value or one a
    channel, lead back to grey values, which the tone changes work on."""
    config = config or Augmentation()
    draws = Draws(len(images), generator, images.device)
    images = _moved(images, config, draws)
    return _retouched(images, config, draws, mean, std)


def augment_both(
    images: Tensor,
    masks: Tensor,
    generator: torch.Generator,
    config: Augmentation,
    mean: float | tuple[float, ...],
    std: float | tuple[float, ...],
) -> tuple[Tensor, Tensor]:
    """``augment`` of images with their masks (N, S, S): what moves an image moves its mask by the
    same grid (nearest neighbour); tones and cut-outs are the image's alone."""
    draws = Draws(len(images), generator, images.device)
    if warps(config):
        images, moved = warp_both(images, masks[:, None].to(images.dtype), config, draws)
    else:  # whole pixels: image and mask may be moved as one
        joined = torch.cat([images, masks[:, None].to(images.dtype)], dim=1)
        joined = _shifted(joined, config, draws)
        images, moved = joined[:, :-1], joined[:, -1:]
    return _retouched(images, config, draws, mean, std), moved[:, 0].round().to(masks.dtype)


def _moved(images: Tensor, config: Augmentation, draws: Draws) -> Tensor:
    return warp(images, config, draws) if warps(config) else _shifted(images, config, draws)


def _retouched(
    images: Tensor,
    config: Augmentation,
    draws: Draws,
    mean: float | tuple[float, ...],
    std: float | tuple[float, ...],
) -> Tensor:
    if _tones(config):
        middle, deviation = (_planes(value, images.device) for value in (mean, std))
        grey = (images * deviation + middle).clamp(0, 1)
        images = (_toned(grey, config, draws) - middle) / deviation
    contrast = 1 + draws.around(config.contrast)  # (N,)
    brightness = draws.around(config.brightness)  # (N,)
    varied = images * contrast[:, None, None, None] + brightness[:, None, None, None]
    return _cut_out(varied, config.cutout, draws) if config.cutout else varied


def _planes(value: float | tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device=device).reshape(-1, 1, 1)


def _shifted(images: Tensor, config: Augmentation, draws: Draws) -> Tensor:
    """Whole pixels: nothing is interpolated."""
    size = images.shape[-1]
    reach = round(size * config.translation)
    if reach:
        padded = functional.pad(images, (reach,) * 4, mode="replicate")
        moves = (draws.uniform(2) * (2 * reach + 1)).floor().long()  # (N, 2) in 0 … 2 reach
        images = torch.stack(
            [padded[i, :, y : y + size, x : x + size] for i, (y, x) in enumerate(moves.tolist())]
        )  # (N, C, S, S)
    for chance, axis in ((config.mirror, -1), (config.flip, -2)):
        if chance:
            images = _where(draws.happens(chance), images.flip(axis), images)
    return images


def _tones(config: Augmentation) -> bool:
    return any(
        (
            config.gamma,
            config.blur,
            config.noise,
            config.clahe,
            config.equalise,
            config.solarise,
        )
    )


def _toned(grey: Tensor, config: Augmentation, draws: Draws) -> Tensor:
    """Grey values in 0 to 1."""
    functions = torchvision_transforms()
    if config.clahe:
        grey = _where(draws.happens(config.clahe), clahe(grey), grey)
    if config.equalise:
        levels = (grey * 255).round().to(torch.uint8)
        equal = functions.equalize(levels).to(grey.dtype) / 255
        grey = _where(draws.happens(config.equalise), equal, grey)
    if config.solarise:
        inverted = functions.solarize(grey, SOLARISE_FROM)
        grey = _where(draws.happens(config.solarise), inverted, grey)
    if config.gamma:
        grey = grey ** (1 + draws.around(config.gamma))[:, None, None, None]
    if config.blur:
        grey = _where(draws.happens(config.blur), _blurred(grey, draws), grey)
    if config.noise:
        deviation = config.noise * draws.uniform()[:, None, None, None]
        grey = grey + deviation * draws.normal(*grey.shape[1:])
    return grey.clamp(0, 1)


def _blurred(grey: Tensor, draws: Draws) -> Tensor:
    low, high = BLUR_SIGMA
    blur = torchvision_transforms().gaussian_blur
    sigmas = (low + (high - low) * draws.uniform()).tolist()
    return torch.stack(
        [blur(image, [7, 7], [sigma, sigma]) for image, sigma in zip(grey, sigmas, strict=True)]
    )


def _cut_out(images: Tensor, chance: float, draws: Draws) -> Tensor:
    """A square of whole pixels at the mean grey value (DeVries and Taylor, 2017)."""
    size = images.shape[-1]
    place = torch.arange(size, device=images.device)
    side = (draws.uniform() * (size // LARGEST_CUT)).floor()[:, None] + 1  # (N, 1)
    corner = (draws.uniform(2) * (size - side + 1)).floor()  # (N, 2)
    inside = [
        (place >= corner[:, axis, None]) & (place < corner[:, axis, None] + side) for axis in (0, 1)
    ]  # (N, S) each
    square = inside[0][:, :, None] & inside[1][:, None, :] & draws.happens(chance)[:, None, None]
    return images.masked_fill(square[:, None], 0.0)


def _where(chosen: Tensor, varied: Tensor, images: Tensor) -> Tensor:
    return torch.where(chosen[:, None, None, None], varied, images)
