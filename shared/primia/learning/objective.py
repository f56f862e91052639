"""What a batch of local training minimises: cross-entropy with class weights, label smoothing and
MixUp (Zhang et al., 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch import Tensor
from torch.nn import functional

from primia.learning.config import TrainingConfig


@dataclass(frozen=True)
class Batch:
    """``images`` (n, C, S, S); each is ``share`` of ``labels`` (n,) and the rest of ``others``."""

    images: Tensor
    labels: Tensor
    others: Tensor
    share: float = 1.0


def mix(images: Tensor, labels: Tensor, alpha: float, generator: torch.Generator) -> Batch:
    """Each image blended with another of the batch; λ ~ Beta(α, α), one draw a batch."""
    if alpha == 0:
        return Batch(images, labels, labels)
    uniform = float(torch.empty((), dtype=torch.float64).uniform_(generator=generator))
    share = float(betaincinv(alpha, alpha, uniform))
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    blended = share * images + (1 - share) * images[order]
    return Batch(blended, labels, labels[order], share)


class Objective:
    """The mean loss of a batch's logits."""

    def __init__(self, config: TrainingConfig, device: torch.device) -> None:
        self._smoothing = config.label_smoothing
        weights = config.class_weights
        self._weights = None if weights is None else torch.tensor(weights, device=device)

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        loss = self._entropy(logits, batch.labels)
        if batch.share < 1:
            loss = batch.share * loss + (1 - batch.share) * self._entropy(logits, batch.others)
        return loss

    def _entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(
            logits.float(), labels, weight=self._weights, label_smoothing=self._smoothing
        )
