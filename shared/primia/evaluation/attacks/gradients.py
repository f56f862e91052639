"""What a site would have sent, had its images been these: the attacker's model of the training.

Each is made of a module in the state that the round began with, and gives the gradients of its
parameters, in their order, as a function of images (n, C, S, S) and labels (n,) that can itself be
differentiated. BatchNorm sees the statistics of the batch, as in training. The module is copied:
the caller's does not change.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from primia.errors import InvalidInput

Gradient = tuple[Tensor, ...]  # one a parameter, in the module's order
Sender = Callable[[Tensor, Tensor], Gradient]  # (images, labels) -> what is sent


def mean_gradient(module: nn.Module) -> Sender:
    """Of one site, all of whose images are one batch: the gradient of their mean cross-entropy."""
    own = _own(module)
    parameters = list(own.parameters())

    def sent(images: Tensor, labels: Tensor) -> Gradient:
        loss = functional.cross_entropy(own(images), labels)
        return torch.autograd.grad(loss, parameters, create_graph=True)

    return sent


def weighted_gradient(module: nn.Module, sizes: Sequence[int]) -> Sender:
    """Σ n_i/N g_i over sites with ``sizes`` n_i, whose images come one site after the other: what
    secure aggregation opens. The owner knows the sizes."""
    if not sizes or min(sizes) < 1:
        raise InvalidInput("The sites of a sum have at least one image each.")
    of_site, total = mean_gradient(module), sum(sizes)

    def sent(images: Tensor, labels: Tensor) -> Gradient:
        parts = zip(*(torch.split(each, list(sizes)) for each in (images, labels)), strict=True)
        return _sum([(len(y) / total, of_site(x, y)) for x, y in parts])

    return sent


def clipped_gradient(module: nn.Module, norm: float) -> Sender:
    """Of DP-SGD without its noise: the mean of each image's own gradient, shortened to an L2 norm
    of at most ``norm`` (Abadi et al., CCS 2016, algorithm 1)."""
    if not norm > 0:
        raise InvalidInput(f"Gradients cannot be clipped to a norm of {norm}.")
    of_site = mean_gradient(module)

    def sent(images: Tensor, labels: Tensor) -> Gradient:
        found = []
        for image, label in zip(torch.split(images, 1), torch.split(labels, 1), strict=True):
            gradient = of_site(image, label)
            factor = (norm / length(gradient).clamp(min=1e-12)).clamp(max=1.0)
            found.append((factor / len(labels), gradient))
        return _sum(found)

    return sent


def length(gradient: Gradient) -> Tensor:
    """The L2 norm over all parameters, a scalar."""
    return torch.stack([each.square().sum() for each in gradient]).sum().sqrt()


def _own(module: nn.Module) -> nn.Module:
    own = copy.deepcopy(module).train()
    for parameter in own.parameters():
        parameter.requires_grad_(True)
    return own


def _sum(parts: Sequence[tuple[float | Tensor, Gradient]]) -> Gradient:
    weighted = [tuple(weight * each for each in gradient) for weight, gradient in parts]
    return tuple(torch.stack(each).sum(dim=0) for each in zip(*weighted, strict=True))
