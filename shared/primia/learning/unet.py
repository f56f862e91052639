"""U-Net (Ronneberger, Fischer and Brox, MICCAI 2015, figure 1): classes of pixels.

As in the figure, but with padded convolutions, so that the mask is as large as the image, and a
norm behind each convolution. ``width`` is the number of channels at full resolution (64 there).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_DEPTH = 4  # times the resolution is halved


class UNet(nn.Module):
    """Images (N, channels, S, S), S a multiple of 16, to logits (N, classes, S, S)."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        widths = [width << level for level in range(_DEPTH + 1)]
        given = [channels, *widths[:-1]]
        self.down = nn.ModuleList(_pair(a, b) for a, b in zip(given, widths, strict=True))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in widths[-2::-1])
        self.join = nn.ModuleList(_pair(2 * w, w) for w in widths[-2::-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.down[0](images)
        kept = []
        for part in list(self.down)[1:]:
            kept.append(x)
            x = part(self.pool(x))
        for up, join, across in zip(self.up, self.join, reversed(kept), strict=True):
            x = join(torch.cat([across, up(x)], dim=1))
        logits: Tensor = self.head(x)
        return logits


def _pair(given: int, out: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for before in (given, out):
        layers += [
            nn.Conv2d(before, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)
