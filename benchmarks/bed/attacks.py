"""What an attacked round is, case by case: who sends what, what the owner sees, what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from primia.evaluation.attacks.gradients import Sender, clipped_gradient, weighted_gradient
from primia.evaluation.attacks.inversion import Search, Shown, invert
from primia.evaluation.attacks.labels import infer_counts, infer_label, overlap
from primia.learning.accounting import DpSgd
from primia.learning.layout import Vector
from primia.learning.models import create_model, flatten
from primia.learning.spec import ModelSpec
from primia.learning.training import ImageData, predict
from primia.simulation import exposure
from primia.simulation.exposure import Exposure
from primia.simulation.likeness import pairing
from primia.simulation.sites import Setting

Sites = Mapping[str, ImageData]  # the images of one attacked round
See = Callable[[ModelSpec, Vector, Sites], Exposure]


@dataclass(frozen=True)
class Case:
    """``sites`` of ``images`` each send; ``see``: what the owner gets of it."""

    name: str
    sites: int
    images: int
    see: See


@dataclass(frozen=True)
class Attacked:
    """``true`` and ``found`` (N, C, S, S), from 0 to 1, in pairs; ``labels``: the share of the
    classes that the owner told rightly; ``distance``: of the gradients (1 - cosine) at the end,
    mean over the attacks. None: not looked for."""

    true: Tensor
    found: Tensor
    labels: float | None = None
    distance: float | None = None


def cases(batch: int, epsilons: list[float]) -> Iterator[Case]:
    """From what shows most of an image to what shows least."""
    yield Case("one image, plain", 1, 1, _image)
    sizes = sorted({2, batch})
    for size in sizes:
        yield Case(f"one site of {size}, plain", 1, size, _site)
    for size in sizes:
        yield Case(f"sum of 3 sites of {size}, secure", 3, size, exposure.of_sum)
    for epsilon in epsilons:
        yield Case(f"one site of {batch}, ε = {epsilon:g}", 1, batch, _private(epsilon))


@dataclass(frozen=True)
class Owner:
    """The attacker: the model that it has sent out, and images of its own."""

    spec: ModelSpec
    own: ImageData
    start: str  # "grey" or "mean"

    @cached_property
    def module(self) -> nn.Module:
        return create_model(self.spec)

    @cached_property
    def mean(self) -> Tensor:
        """Of its own images, from 0 to 1."""
        return unit(self.own).mean(dim=0)

    @cached_property
    def chances(self) -> Tensor:
        """What its model predicts for its own images, on average (classes,)."""
        logits = torch.from_numpy(predict(create_model(self.spec), self.own))
        return logits.softmax(dim=1).mean(dim=0)

    def attack(self, case: Case, setting: Setting, images: int, search: Search) -> Attacked:
        """As many rounds as take all ``images``, attacked one by one."""
        weights = flatten(self.module)
        parts = []
        for sites in rounds(case, setting, images):
            parts.append(self._one(case.see(self.spec, weights, sites), sites, search))
        true, found = (torch.cat(each) for each in zip(*(part[:2] for part in parts), strict=True))
        told, distance = np.mean([part[2:] for part in parts], axis=0)
        return Attacked(true, found, float(told), float(distance))

    def _one(
        self, seen: Exposure, sites: Sites, search: Search
    ) -> tuple[Tensor, Tensor, float, float]:
        """(true, found, share of the classes told rightly, distance) of one attacked round."""
        gradient = exposure.gradient(self.spec, seen)
        labels = np.concatenate([sites[name].labels for name in sorted(sites)])
        low, high = (float(np.min(edge)) for edge in self._edges())
        known = Shown(
            torch.from_numpy(labels),  # the attacker is given them: its best case
            self.spec.input_shape,
            low,
            high,
            self._normalised(self.mean) if self.start == "mean" else None,
        )
        result = invert(gradient, self._sender(seen), known, search)
        true = torch.cat([unit(sites[name]) for name in sorted(sites)])
        found = self._pixels(result.images)
        order = torch.from_numpy(pairing(true, found))
        told = self._labels(gradient[-1], labels)
        return true, found[order], told, result.distance

    def guessed(self, setting: Setting, images: int, batch: int) -> float:
        """The share of the classes told rightly by who takes those of each batch for divided as the
        classes of its own images are."""
        classes = len(self.spec.classes)
        shares = torch.from_numpy(np.bincount(self.own.labels, minlength=classes) / len(self.own))
        batches = rounds(Case("", 1, batch, _site), setting, images)
        true = [np.bincount(d.labels, minlength=classes) for each in batches for d in each.values()]
        guess = infer_counts(torch.zeros(classes), shares, batch)
        return float(np.mean([overlap(guess, tuple(each.tolist())) for each in true]))

    def _sender(self, seen: Exposure) -> Sender:
        if seen.clip_norm is not None:
            return clipped_gradient(self.module, seen.clip_norm)
        return weighted_gradient(self.module, seen.sizes)

    def _labels(self, bias: Tensor, labels: np.ndarray) -> float:
        classes = len(self.spec.classes)
        true = tuple(np.bincount(labels, minlength=classes).tolist())
        if len(labels) == 1:
            return float(infer_label(bias) == labels[0])
        return overlap(infer_counts(bias, self.chances, len(labels)), true)

    def _edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Black and white as the model sees them."""
        mean, std = np.asarray(self.spec.mean), np.asarray(self.spec.std)
        return -mean / std, (1 - mean) / std

    def _normalised(self, images: Tensor) -> Tensor:
        return (images - self._channels(self.spec.mean)) / self._channels(self.spec.std)

    def _pixels(self, images: Tensor) -> Tensor:
        found = images * self._channels(self.spec.std) + self._channels(self.spec.mean)
        return found.clamp(0, 1)

    @staticmethod
    def _channels(values: float | tuple[float, ...]) -> Tensor:
        return torch.tensor(values).reshape(-1, 1, 1)


def rounds(case: Case, setting: Setting, images: int) -> Iterator[Sites]:
    """The same images in every case, a third from each site, spread over its classes."""
    share = images // len(setting.sites)
    parts = {site.name: spread(site.training, share) for site in setting.sites}
    if case.sites > 1:
        for start in range(0, share, case.images):
            yield {name: some(part, start, case.images) for name, part in parts.items()}
        return
    for name, part in parts.items():
        for start in range(0, share, case.images):
            yield {name: some(part, start, case.images)}


def spread(data: ImageData, count: int) -> ImageData:
    """So many images from all over the data set, their classes mixed."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).numpy()
    rows = order * len(data) // count
    return ImageData(data.pixels[rows], data.labels[rows], data.mean, data.std)


def some(data: ImageData, start: int, count: int) -> ImageData:
    part = slice(start, start + count)
    return ImageData(data.pixels[part], data.labels[part], data.mean, data.std)


def unit(data: ImageData) -> Tensor:
    """Pixels from 0 to 1, float32 (N, C, S, S)."""
    return torch.from_numpy(data.pixels.astype(np.float32) / 255)


def _image(spec: ModelSpec, weights: Vector, sites: Sites) -> Exposure:
    (data,) = sites.values()
    return exposure.of_image(spec, weights, data)


def _site(spec: ModelSpec, weights: Vector, sites: Sites) -> Exposure:
    (data,) = sites.values()
    return exposure.of_site(spec, weights, data)


def _private(epsilon: float) -> See:
    def see(spec: ModelSpec, weights: Vector, sites: Sites) -> Exposure:
        (data,) = sites.values()
        return exposure.of_private_site(spec, weights, data, DpSgd(epsilon=epsilon))

    return see
