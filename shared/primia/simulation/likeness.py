"""How alike two sets of images are: pair by pair (MSE, PSNR, SSIM) and as sets (Fréchet distance).

Images are float32 (N, C, S, S) from 0 (black) to 1 (white).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from primia.errors import InvalidInput
from primia.learning.vision import torchmetrics_functional_image, torchmetrics_image

MAX_IMAGES = 4096


@dataclass(frozen=True)
class Likeness:
    """Of each true image and the one that it is paired with, in the order of the true ones.
    ``mse``: of pixels from 0 to 1; ``psnr`` in dB, infinite for equal images; ``ssim`` at most 1
    (Wang et al., 2004: Gaussian window of 11 pixels, σ 1.5)."""

    mse: tuple[float, ...]
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]

    @classmethod
    def joined(cls, parts: Sequence[Likeness]) -> Likeness:
        """Of several sets, one after the other."""
        return cls(
            tuple(value for part in parts for value in part.mse),
            tuple(value for part in parts for value in part.psnr),
            tuple(value for part in parts for value in part.ssim),
        )


def pairing(true: Tensor, found: Tensor) -> NDArray[np.int64]:
    """Which of ``found`` (M >= N images) each of ``true`` is paired with (N,): no two with the same
    one, and the sum of the squared errors is the least (Kuhn and Munkres). A sum over images does
    not tell their order: the attacker is given the best one."""
    _check(true, found)
    if len(found) < len(true):
        raise InvalidInput(f"{len(true)} images cannot be paired with {len(found)}.")
    costs = torch.cdist(true.double().flatten(1), found.double().flatten(1)).square()  # (N, M)
    return np.asarray(linear_sum_assignment(costs.numpy())[1], dtype=np.int64)


def likeness(true: Tensor, found: Tensor) -> Likeness:
    """Of pairs: found[k] belongs to true[k]."""
    _check(true, found)
    if len(true) != len(found):
        raise InvalidInput(f"{len(true)} images are paired with {len(found)}.")
    errors = (true.double() - found.double()).square().flatten(1).mean(dim=1).tolist()
    measure = torchmetrics_functional_image().structural_similarity_index_measure
    alike = measure(found.double(), true.double(), data_range=1.0, reduction="none")
    return Likeness(
        tuple(errors),
        tuple(-10 * math.log10(error) if error else math.inf for error in errors),
        tuple(alike.reshape(-1).tolist()),
    )


def frechet_distance(true: Tensor, found: Tensor, features: nn.Module) -> float:
    """Fréchet distance of two normal distributions fitted to the images' features (Heusel et al.,
    FID, NeurIPS 2017, equation 6), 0 for equal sets.

    ``features``: images (n, C, S, S) to (n, features.num_features). What the number means depends
    on them, and for few images (fewer than features above all) it is larger than for many: compare
    it only between sets of the same size and features.
    """
    _check(true, found)
    if min(len(true), len(found)) < 2:
        raise InvalidInput("A Fréchet distance needs at least two images in each set.")
    metric = torchmetrics_image().fid.FrechetInceptionDistance(feature=features, normalize=True)
    with torch.no_grad():
        metric.update(true, real=True)
        metric.update(found, real=False)
    return max(0.0, float(metric.compute()))


def _check(true: Tensor, found: Tensor) -> None:
    for images in (true, found):
        if images.ndim != 4 or not 1 <= len(images) <= MAX_IMAGES:
            raise InvalidInput(f"1 to {MAX_IMAGES} images are compared, not {tuple(images.shape)}.")
        if not (torch.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
            raise InvalidInput("Images to compare have values from 0 to 1.")
    if true.shape[1:] != found.shape[1:]:
        raise InvalidInput(f"{tuple(true.shape[1:])} is compared with {tuple(found.shape[1:])}.")
