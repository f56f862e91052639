"""The classes of the images, from the gradient of the last layer's biases.

With cross-entropy, class c's bias has the gradient mean over the images of (p_c - [label is c]),
where p are the predicted probabilities: of one image it is negative for its class alone (Zhao,
Mopuri and Bilen, iDLG, 2020, equation 4). Of n images it is mean(p_c) - n_c / n; an attacker who
puts the model's own predictions of other images in place of p gets the counts n_c (the bias form
of Geng et al., 2021, section 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from primia.errors import InvalidInput

MAX_IMAGES = 4096


def infer_label(bias: Tensor) -> int:
    """The class of a single image; ``bias``: gradient of the last layer's biases (K,), in any
    positive scale. Exact, unless noise was added."""
    _check(bias)
    return int(bias.argmin())


def infer_counts(bias: Tensor, chances: Tensor, images: int) -> tuple[int, ...]:
    """How many of so many images are of each class (K,): n (p - b), rounded so that they add up.

    ``bias``: gradient of the mean loss, in its true scale; ``chances``: the model's mean predicted
    probabilities (K,). Exact, with the true chances and no noise.
    """
    _check(bias)
    if chances.shape != bias.shape:
        raise InvalidInput(f"There are {len(chances)} probabilities for {len(bias)} classes.")
    if not 1 <= images <= MAX_IMAGES:
        raise InvalidInput(f"A gradient is of 1 to {MAX_IMAGES} images, not {images}.")
    wanted = (images * (chances.double() - bias.double())).clamp(min=0)  # (K,)
    wanted = wanted * (images / wanted.sum()) if wanted.sum() > 0 else wanted
    counts = wanted.floor().long()
    missing = images - int(counts.sum())
    for place in (wanted - counts).argsort(descending=True, stable=True).tolist() * images:
        if missing <= 0:
            break
        counts[place] += 1
        missing -= 1
    return tuple(counts.tolist())


def overlap(found: tuple[int, ...], true: tuple[int, ...]) -> float:
    """The share of the images whose class was told rightly: Σ min(found, true) / n."""
    if len(found) != len(true) or sum(found) != sum(true) or not sum(true):
        raise InvalidInput("The counts are of other numbers of classes or images.")
    return sum(min(pair) for pair in zip(found, true, strict=True)) / sum(true)


def _check(bias: Tensor) -> None:
    if bias.ndim != 1 or len(bias) < 2:
        raise InvalidInput(f"Biases of a last layer have one dimension, not {tuple(bias.shape)}.")
    if not torch.isfinite(bias).all():
        raise InvalidInput("The gradient is not finite (NaN or infinity).")
