"""DP-SGD at one site (Abadi et al., CCS 2016), on Opacus' validator and optimiser; which images a
batch has and what noise is added come from the secure generator (primia.prg, primia.noise).

Opacus' hooks do not bear layers that work in place: each image's gradient comes from torch itself.
Its secure mode needs torchcsprng, which current versions of torch no longer take. Here the clipped
gradients of a batch are summed in float64 and rounded to a lattice of C 2^-16 / √d a value (d
values, C the clip norm: one image moves the rounded sum by at most C + C 2^-16), and the noise is a
rounded normal on the same lattice: no floating-point noise is added to anything.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from primia.errors import LocalError
from primia.learning.accounting import DpSgd, Release, check_settings, sampling_limit
from primia.learning.augmentation import augment, augment_both
from primia.learning.batches import Tally, deterministic
from primia.learning.carried import Carried
from primia.learning.config import TrainingConfig
from primia.learning.memory import gradients_held
from primia.learning.objective import dice_loss, recognised
from primia.learning.optimisers import (
    create_optimiser,
    optimiser_tensors,
    restore_optimiser,
    set_rate,
)
from primia.learning.schedules import Span, rate_factor
from primia.learning.training import (
    Device,
    ImageData,
    ShouldStop,
    TrainingStopped,
    TrainResult,
    pick_device,
)
from primia.noise import rounded_normals
from primia.prg import Seed, Stream

# Rounding to the lattice moves the sum of a batch by at most this share of the clip norm.
ROUNDING = 2.0**-16


class NotPrivate(LocalError):
    """A layer that mixes the images of a batch."""

    code = "not-private"
    title = "The model cannot be trained with differential privacy"
    status = 422


def check_private(module: nn.Module) -> None:
    """Raises NotPrivate, with the layers (BatchNorm above all), unless each image has a gradient of
    its own. The module ends in training mode."""
    errors = ModuleValidator.validate(module.train(), strict=False)
    if errors:
        raise NotPrivate(
            f"The model has layers that mix the images of a batch: {errors[0]}",
            hint="Register the model with norm 'group'.",
        )


class PoissonSampler:
    """Each image by itself in a batch, with a probability that is a multiple of 2^-32."""

    def __init__(self, images: int, batch_size: int) -> None:
        self._images, self._limit = images, sampling_limit(images, batch_size)
        self._stream = Stream(Seed.fresh(), "dp-sgd/sampling")

    def draw(self) -> NDArray[np.int64]:
        """Row numbers, possibly none."""
        return np.flatnonzero(self._stream.words(self._images).astype(np.uint64) < self._limit)


class LatticeOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus is not typed
    """Opacus' optimiser with sums in float64, rounded, and rounded normal noise."""

    def __init__(
        self, optimiser: torch.optim.Optimizer, sigma: float, clip: float, batch_size: int
    ) -> None:
        super().__init__(
            optimiser, noise_multiplier=sigma, max_grad_norm=clip, expected_batch_size=batch_size
        )
        self._stream = Stream(Seed.fresh(), "dp-sgd/noise")
        self._unit = clip * ROUNDING / math.sqrt(sum(p.numel() for p in self.params))
        self._sums: list[Tensor] = []
        self.begin()

    def begin(self) -> None:
        """A new batch: nothing is summed."""
        self._sums = [torch.zeros(p.numel(), dtype=torch.float64) for p in self.params]

    def accumulate(self, gradients: list[Tensor]) -> None:
        """Clip and add some images' gradients, a tensor (n, *shape) for each parameter."""
        rows = [each.reshape(len(each), -1) for each in gradients]  # (n, values) each
        norms = [torch.linalg.vector_norm(g, dim=1, dtype=torch.float64) for g in rows]
        norm = torch.stack(norms, dim=1).norm(dim=1)  # (n,)
        factor = (self.max_grad_norm / norm.clamp(min=1e-12)).clamp(max=1.0)
        for total, values in zip(self._sums, rows, strict=True):
            for value, weight in zip(values.cpu(), factor.tolist(), strict=True):
                total.add_(value, alpha=weight)

    def finish(self) -> None:
        """One step along (rounded sum + noise) / expected batch size."""
        sigma = self.noise_multiplier * self.max_grad_norm * (1 + ROUNDING) / self._unit
        scale = self._unit / self.expected_batch_size
        for parameter, total in zip(self.params, self._sums, strict=True):
            noise = rounded_normals(self._stream, len(total), sigma)
            noisy = total.div_(self._unit).round_().add_(torch.from_numpy(noise))
            gradient = noisy.mul_(scale).reshape(parameter.shape)
            parameter.grad = gradient.to(parameter.device, parameter.dtype)
        self.original_optimizer.step()
        self.original_optimizer.zero_grad(set_to_none=True)
        self.begin()


def train_privately(
    module: nn.Module,
    data: ImageData,
    config: TrainingConfig,
    dp: DpSgd,
    release: Release,
    seed: int,
    *,
    span: Span | None = None,
    carried: Carried | None = None,
    device: Device = "cpu",
    should_stop: ShouldStop | None = None,
) -> TrainResult:
    """Train the module in place by ``release.steps`` steps of DP-SGD; it ends on the CPU.

    ``release``: accounting.release_of_round of this site, which the caller charges; ``seed``: of
    the augmentation, which needs no secrecy. Two calls give two results: batches and noise are
    drawn anew. The loss and accuracy of the result are the site's own, and not private. Raises
    NotPrivate, InvalidInput, TrainingStopped.
    """
    check_settings(config)
    check_private(module)
    place = pick_device(device)
    with deterministic(module, place, seed):
        module.to(place).train()
        try:
            session = _Session(module, data, config, dp, release, seed, carried or Carried())
            return session.run(span or Span(), should_stop)
        finally:
            module.to("cpu").train()


class _Session:
    def __init__(
        self,
        module: nn.Module,
        data: ImageData,
        config: TrainingConfig,
        dp: DpSgd,
        release: Release,
        seed: int,
        carried: Carried,
    ) -> None:
        self._module, self._data, self._config, self._release = module, data, config, release
        self._place = next(module.parameters()).device
        inner = create_optimiser(module, config)
        if carried.optimiser and config.optimiser_state == "kept":
            restore_optimiser(inner, carried.optimiser)
        self._carried = carried
        self._optimiser = LatticeOptimizer(
            inner, release.noise_multiplier, dp.clip_norm, config.batch_size
        )
        self._sampler = PoissonSampler(len(data), config.batch_size)
        self._generator = torch.Generator().manual_seed(seed)
        values = sum(p.numel() for p in module.parameters())
        self._held = gradients_held(values)
        weights = config.class_weights
        self._weights = None if weights is None else torch.tensor(weights, device=self._place)

    def run(self, span: Span, should_stop: ShouldStop | None) -> TrainResult:
        started, tally, config = time.perf_counter(), Tally(), self._config
        total, rate = self._release.steps, config.hyperparameters.learning_rate
        for number in range(total):
            factor = rate_factor(config.schedule, span.at(number, total))
            set_rate(self._optimiser.original_optimizer, rate * factor)
            rows = self._sampler.draw()
            for start in range(0, len(rows), self._held):
                if should_stop and should_stop():
                    raise TrainingStopped(f"Training was stopped in batch {number + 1} of {total}.")
                part = rows[start : start + self._held]
                tally.add(*self._backward(part), len(part))
            self._optimiser.finish()
        seconds = time.perf_counter() - started
        kept = config.optimiser_state == "kept"
        tensors = optimiser_tensors(self._optimiser.original_optimizer) if kept else {}
        measured = (tally.loss, tally.accuracy) if tally.samples else (0.0, 0.0)
        standing = self._carried.standing
        return TrainResult(*measured, seconds, total, tally.samples, Carried(tensors, standing))

    def _backward(self, rows: NDArray[np.int64]) -> tuple[float, float]:
        """(mean loss, images recognised); each image's own loss, whatever else is in the batch."""
        images, labels = self._data.batch(rows, self._place)
        if self._config.augment:
            data, variation = self._data, self._config.augmentation
            if data.masks:
                images, labels = augment_both(
                    images, labels, self._generator, variation, data.mean, data.std
                )
            else:
                images = augment(images, self._generator, variation, data.mean, data.std)
        if self._place.type == "cuda":
            return self._all_at_once(images, labels)
        found = [self._alone(image, label) for image, label in zip(images, labels, strict=True)]
        return sum(loss for loss, _ in found) / len(found), sum(right for _, right in found)

    def _alone(self, image: Tensor, label: Tensor) -> tuple[float, float]:
        """On a CPU one image after the other is the fastest way."""
        parameters: dict[str, Tensor] = dict(self._module.named_parameters())
        loss, (_, right) = self._loss(parameters, image, label)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        self._optimiser.accumulate([each[None] for each in gradients])
        return float(loss.detach()), float(right)

    def _all_at_once(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        parameters = {name: p.detach() for name, p in self._module.named_parameters()}
        each = vmap(grad(self._loss, has_aux=True), in_dims=(None, 0, 0), randomness="different")
        gradients, (losses, right) = each(parameters, images, labels)
        self._optimiser.accumulate([gradients[name] for name in parameters])
        return float(losses.mean()), float(right.sum())

    def _loss(
        self, parameters: dict[str, Tensor], image: Tensor, label: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Of one image (C, S, S): its loss; and again, with whether it was recognised."""
        logits = functional_call(self._module, parameters, (image[None],))  # (1, classes)
        loss = functional.cross_entropy(
            logits,
            label[None],
            weight=self._weights,
            label_smoothing=self._config.label_smoothing,
            reduction="mean" if label.ndim else "sum",  # of one image: its pixels, or itself
        )
        if label.ndim:
            loss = loss + dice_loss(logits, label[None])
        return loss, (loss.detach(), recognised(logits.detach(), label[None]))
