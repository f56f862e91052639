"""What a batch of local training minimises: cross-entropy with class weights, label smoothing and
MixUp (Zhang et al., 2018); for segmentation the mean cross-entropy of the pixels plus a soft Dice
loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch import Tensor
from torch.nn import functional

from primia.learning.config import TrainingConfig


@dataclass(frozen=True)
class Batch:
    """``images`` (n, C, S, S); each is ``share`` of ``labels`` (n,) and the rest of ``others``; for
    segmentation ``labels`` are masks (n, S, S)."""

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
    """The mean loss of a batch's logits. With class weights it is torch's, a weighted mean; for
    FedSGD the weighted losses over the number of images, whose sums over batches and over sites are
    those over all images: a weighted mean's would depend on what is in a batch with what."""

    def __init__(self, config: TrainingConfig, device: torch.device) -> None:
        self._smoothing = config.label_smoothing
        weights = config.class_weights
        self._weights = None if weights is None else torch.tensor(weights, device=device)
        self._adds_up = weights is not None and config.algorithm == "fedsgd"

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        loss = self._entropy(logits, batch.labels)
        if batch.share < 1:
            loss = batch.share * loss + (1 - batch.share) * self._entropy(logits, batch.others)
        return loss

    def _entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = functional.cross_entropy(
            logits.float(),
            labels,
            weight=self._weights,
            label_smoothing=self._smoothing,
            reduction="sum" if self._adds_up else "mean",
        )
        if self._adds_up:
            loss = loss / len(labels)
        return loss + dice_loss(logits.float(), labels) if labels.ndim == 3 else loss


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - D, D the mean over images and over all classes but the background (number 0) of
    (2 Σ p g + 1) / (Σ p² + Σ g² + 1), sums over pixels, p the softmax, g 1 in the class's pixels
    and 0 elsewhere (Milletari et al., V-Net, 3DV 2016, section 3; the ones keep it defined for a
    class that is not there). Each image has a Dice of its own, so that the loss is a mean over
    images: FedSGD and DP-SGD need that.

    Logits (n, K, S, S), masks (n, S, S).
    """
    chances = logits.softmax(dim=1)[:, 1:]  # (n, K - 1, S, S)
    numbers = torch.arange(1, logits.shape[1], device=logits.device)[None, :, None, None]
    truth = (masks[:, None] == numbers).to(chances.dtype)
    both = (chances * truth).sum(dim=(2, 3))  # (n, K - 1)
    size = (chances**2).sum(dim=(2, 3)) + truth.sum(dim=(2, 3))
    return 1 - ((2 * both + 1) / (size + 1)).mean()


def recognised(logits: Tensor, labels: Tensor) -> Tensor:
    """Images of the batch that were recognised; of masks the sum of the images' mean Dice, where a
    class that is neither there nor predicted counts as 1."""
    predicted = logits.argmax(dim=1)
    if labels.ndim == 1:
        return (predicted == labels).sum()
    numbers = torch.arange(1, logits.shape[1], device=logits.device)[None, :, None, None]
    found, truth = predicted[:, None] == numbers, labels[:, None] == numbers  # (n, K - 1, S, S)
    both = 2 * (found & truth).sum(dim=(2, 3)).double()
    size = found.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))
    dice = torch.where(size > 0, both / size.clamp(min=1), 1.0)
    return dice.mean(dim=1).sum()
