"""A user's own network that no catalogue has, and what torch.export makes of it."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from primia.learning.layout import Vector
from primia.learning.programs.document import Program
from primia.learning.programs.exported import program_of


class Own(nn.Module):
    """Two paths that meet again, a gate, dropout; GroupNorm or BatchNorm."""

    def __init__(self, *, batch_norm: bool = False, classes: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(8) if batch_norm else nn.GroupNorm(4, 8)
        self.left = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.SiLU(inplace=True))
        self.right = nn.Conv2d(8, 8, 1)
        self.gate = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(16, classes)

    def forward(self, images: Tensor) -> Tensor:
        found = torch.relu_(self.norm(self.stem(images)))
        found = nn.functional.max_pool2d(found, 2)
        both = torch.cat([self.left(found), self.right(found) / 2], dim=1)
        pooled = both.mean(dim=(2, 3))
        gate = torch.sigmoid(self.gate(pooled[:, :8]))
        pooled = torch.cat([pooled[:, :8] * gate, 1 - pooled[:, 8:]], dim=1)
        return self.head(self.drop(pooled))


def export(module: nn.Module, *shape: int) -> torch.export.ExportedProgram:
    images = torch.zeros(2, *(shape or (1, 16, 16)))
    batch = torch.export.Dim("batch", min=2)
    return torch.export.export(module, (images,), dynamic_shapes=({0: batch},))


@cache
def own_program(*, batch_norm: bool = False) -> tuple[Program, Vector]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return program_of(export(Own(batch_norm=batch_norm)))
