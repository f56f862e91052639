"""Light variations of training images: what a radiograph may look like without changing its class.

Each image is mirrored in half of the cases, moved by up to a sixteenth of its side (the edge is
repeated), and its contrast and brightness vary a little.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

CONTRAST = 0.1  # factor of 1 ± this
BRIGHTNESS = 0.1  # ± this, in units of the standard deviation that images are normalised with


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Normalised images (N, C, S, S) varied one by one; the same for the same generator state."""
    count, _, size, _ = images.shape
    reach = max(1, size // 16)
    draws = torch.empty(count, 5).uniform_(generator=generator)  # (N, 5), each in [0, 1)
    moves = (draws[:, :2] * (2 * reach + 1)).floor().long()  # (N, 2) in 0 … 2 reach
    padded = functional.pad(images, (reach,) * 4, mode="replicate")
    moved = torch.stack(
        [padded[i, :, y : y + size, x : x + size] for i, (y, x) in enumerate(moves.tolist())]
    )  # (N, C, S, S)
    draws = draws.to(images.device)
    mirror = (draws[:, 2] < 0.5)[:, None, None, None]
    mirrored = torch.where(mirror, moved.flip(-1), moved)  # (N, C, S, S)
    contrast = 1 + CONTRAST * (2 * draws[:, 3] - 1)  # (N,)
    brightness = BRIGHTNESS * (2 * draws[:, 4] - 1)  # (N,)
    return mirrored * contrast[:, None, None, None] + brightness[:, None, None, None]
