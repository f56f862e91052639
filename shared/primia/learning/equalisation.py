"""Contrast-limited adaptive histogram equalisation (Zuiderveld, Graphics Gems IV, 1994)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LEVELS = 256
TILES = 4  # a side: radiographs of 64 pixels still have 256 pixels a tile
CLIP = 4.0  # a level's count is at most so many times the mean count


def clahe(images: Tensor) -> Tensor:
    """Grey values in 0 to 1, (N, C, S, S), each channel by itself."""
    count, channels, size, _ = images.shape
    flat = images.reshape(count * channels, size, size)
    levels = (flat * (LEVELS - 1)).round().long()  # (M, S, S)
    curves = _curves(levels)  # (M, T, T, LEVELS)
    return _interpolated(levels, curves).reshape(images.shape)


def _tile(size: int) -> int:
    """Pixels of a tile's side; the last ones go beyond the edges of an image they do not divide."""
    return -(-size // TILES)


def _curves(levels: Tensor) -> Tensor:
    """Each tile's clipped, cumulated histogram: the grey value that a level becomes."""
    many, size, _ = levels.shape
    side = _tile(size)
    spare = side * TILES - size
    whole = functional.pad(levels[:, None].float(), (0, spare, 0, spare), mode="replicate").long()
    tiles = whole.reshape(many, TILES, side, TILES, side).permute(0, 1, 3, 2, 4)
    tiles = tiles.reshape(many, TILES, TILES, side * side)
    histogram = torch.zeros(many, TILES, TILES, LEVELS, device=levels.device)
    histogram.scatter_add_(3, tiles, torch.ones_like(tiles, dtype=histogram.dtype))
    limit = max(1.0, CLIP * side * side / LEVELS)
    excess = (histogram - limit).clamp(min=0).sum(dim=3, keepdim=True)
    clipped = histogram.clamp(max=limit) + excess / LEVELS
    return clipped.cumsum(dim=3) / (side * side)


def _interpolated(levels: Tensor, curves: Tensor) -> Tensor:
    """Bilinear between the curves of the four nearest tiles' centres."""
    many, size, _ = levels.shape
    place = (torch.arange(size, device=levels.device) + 0.5) / _tile(size) - 0.5
    place = place.clamp(0, TILES - 1)
    low = place.floor().long().clamp(max=TILES - 2)  # (S,)
    share = place - low  # (S,)
    which = torch.arange(many, device=levels.device)[:, None, None]
    out = torch.zeros(levels.shape, device=levels.device)
    for down in (0, 1):
        for right in (0, 1):
            rows, columns = (low + down)[None, :, None], (low + right)[None, None, :]
            weight_down = share if down else 1 - share
            weight_right = share if right else 1 - share
            value = curves[which, rows, columns, levels]  # (M, S, S)
            out += weight_down[None, :, None] * weight_right[None, None, :] * value
    return out
