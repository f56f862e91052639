"""Images back from a gradient: Geiping, Bauermeister, Dröge and Moeller, *Inverting Gradients - How
easy is it to break privacy in federated learning?* (NeurIPS 2020), equation 4:

    minimise over x:   1 - <g(x), g> / (‖g(x)‖ ‖g‖)  +  α TV(x)

with Adam along the signs of the derivative, its rate descending, x kept within the range of pixels,
and some random starts of which the one with the least objective is kept. The cosine does not ask
for the scale: an update by one step of gradient descent is as good as its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from primia.errors import InvalidInput, LocalError
from primia.evaluation.attacks.gradients import Gradient, Sender, length

MAX_ITERATIONS = 100_000
MAX_RESTARTS = 64
MAX_VALUES = 1 << 26  # of all images together


class NothingSeen(LocalError):
    """The gradient has no direction: it is zero or not finite."""

    code = "nothing-seen"
    title = "The gradient has no direction"
    status = 422


@dataclass(frozen=True)
class Search:
    """How hard the attacker tries. ``total_variation``: α; ``rate``: of Adam at the start, in the
    model's units, descending by half a cosine; ``spread``: deviation of the random starts around
    ``start`` (zero, the middle grey, if none is given)."""

    iterations: int = 1000
    restarts: int = 1
    rate: float = 0.1
    total_variation: float = 1e-3
    spread: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.iterations <= MAX_ITERATIONS:
            raise InvalidInput(f"An attack has 1 to {MAX_ITERATIONS} iterations.")
        if not 1 <= self.restarts <= MAX_RESTARTS:
            raise InvalidInput(f"An attack has 1 to {MAX_RESTARTS} starts.")
        for name in ("rate", "spread"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InvalidInput(f"The attack's {name} is a positive number.")
        if not (math.isfinite(self.total_variation) and self.total_variation >= 0):
            raise InvalidInput("The weight of the total variation is a number from 0.")
        if not 0 <= self.seed < 2**63:
            raise InvalidInput("The seed is a number from 0 to 2^63 - 1.")


@dataclass(frozen=True)
class Shown:
    """What the attacker knows of the images beside their gradient. ``shape``: (C, S, S); ``low``,
    ``high``: what black and white are to the model; ``start``: one image (C, S, S) to start from,
    such as the mean of the attacker's own."""

    labels: Tensor
    shape: tuple[int, int, int]
    low: float
    high: float
    start: Tensor | None = None

    def __post_init__(self) -> None:
        if self.labels.ndim != 1 or not len(self.labels):
            raise InvalidInput("An attack needs the labels of at least one image.")
        if len(self.labels) * math.prod(self.shape) > MAX_VALUES:
            raise InvalidInput("These are too many or too large images for an attack.")
        if not self.low < self.high:
            raise InvalidInput("Black has to lie below white.")
        if self.start is not None and tuple(self.start.shape) != self.shape:
            raise InvalidInput(f"The start is {tuple(self.start.shape)}, not {self.shape}.")


@dataclass(frozen=True)
class Inversion:
    """``images`` (n, C, S, S) in the model's units; ``objective`` and ``distance`` (1 - cosine) of
    the start that was kept."""

    images: Tensor
    objective: float
    distance: float


def invert(seen: Gradient, sender: Sender, shown: Shown, search: Search) -> Inversion:
    """The images whose ``sender`` comes nearest to what was ``seen``, the same for the same
    arguments on the same machine and number of threads.

    ``seen``: a tensor a parameter, in any positive scale. Raises NothingSeen for zero or NaN,
    InvalidInput for a sender whose gradients have other shapes.
    """
    norm = _norm(seen)
    target = tuple((each / norm).detach() for each in seen)
    generator = torch.Generator().manual_seed(search.seed)
    found = [
        _descend(target, sender, shown, search, start)
        for start in _starts(shown, search, generator)
    ]
    return min(found, key=lambda each: each.objective)


def _starts(shown: Shown, search: Search, generator: torch.Generator) -> Iterator[Tensor]:
    size = (len(shown.labels), *shown.shape)
    middle = torch.zeros(shown.shape) if shown.start is None else shown.start
    for _ in range(search.restarts):
        noise = torch.empty(size).normal_(0, search.spread, generator=generator)
        yield (middle + noise).clamp(shown.low, shown.high)


def _descend(
    target: Gradient, sender: Sender, shown: Shown, search: Search, start: Tensor
) -> Inversion:
    images = start.clone().requires_grad_()
    best = Inversion(start, math.inf, math.inf)
    optimiser = torch.optim.Adam([images], lr=search.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, search.iterations)
    for _ in range(search.iterations):
        distance = cosine_distance(sender(images, shown.labels), target)
        objective = distance + search.total_variation * total_variation(images)
        (derivative,) = torch.autograd.grad(objective, [images])
        if float(objective.detach()) < best.objective:
            best = Inversion(
                images.detach().clone(), *map(float, (objective.detach(), distance.detach()))
            )
        images.grad = derivative.nan_to_num_().sign_()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            images.clamp_(shown.low, shown.high)
    return best


def cosine_distance(gradient: Gradient, target: Gradient) -> Tensor:
    """1 - cosine of the angle between them, over all parameters; ``target`` has length 1."""
    if [each.shape for each in gradient] != [each.shape for each in target]:
        raise InvalidInput(
            "What was seen does not have the shapes of this model's parameters.",
            hint="Give the gradients in the module's order, without its buffers.",
        )
    pairs = zip(gradient, target, strict=True)
    product = torch.stack([(mine * seen).sum() for mine, seen in pairs]).sum()
    return 1 - product / length(gradient).clamp(min=1e-12)


def total_variation(images: Tensor) -> Tensor:
    """The mean absolute difference of neighbours, across plus down."""
    across = images[..., :, 1:] - images[..., :, :-1]
    down = images[..., 1:, :] - images[..., :-1, :]
    return across.abs().mean() + down.abs().mean()


def _norm(seen: Gradient) -> float:
    norm = float(length(tuple(each.detach() for each in seen))) if seen else 0.0
    if not math.isfinite(norm) or norm == 0:
        raise NothingSeen(
            "The gradient is zero or not finite: nothing can be reconstructed from it.",
            hint="Attack the update of a round in which the site has trained.",
        )
    return norm
