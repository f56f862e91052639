"""The batches of a round of local training, and one step on a batch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from primia.learning.config import TrainingConfig
from primia.learning.objective import Batch, Objective, recognised

_GLOBAL_GENERATOR = threading.Lock()


class Tally:
    """Sums over the batches so far."""

    def __init__(self) -> None:
        self.samples = 0
        self.last = 0.0
        self._loss = 0.0
        self._right = 0.0

    def add(self, loss: float, right: float, samples: int) -> None:
        self.last = loss
        self.samples += samples
        self._loss += loss * samples
        self._right += right

    @property
    def loss(self) -> float:
        return self._loss / self.samples

    @property
    def accuracy(self) -> float:
        return self._right / self.samples


def batches_an_epoch(samples: int, batch_size: int) -> int:
    """A single image left over is no batch: BatchNorm has no statistics of one (see ``order``)."""
    whole, rest = divmod(samples, batch_size)
    return whole + (rest >= 2)


def batch_count(samples: int, config: TrainingConfig) -> int:
    """Batches a round."""
    if config.passes is None:
        return config.batches or 1
    return config.passes * batches_an_epoch(samples, config.batch_size)


def order(
    samples: int, batch_size: int, generator: torch.Generator, *, all_images: bool = False
) -> Iterator[NDArray[np.int64]]:
    """Batches of row numbers, one freshly drawn order after another, without end.

    A single image left over is left out; with ``all_images`` it joins the batch before it.
    """
    while True:
        rows = torch.randperm(samples, generator=generator).numpy()
        count = batches_an_epoch(samples, batch_size)
        for number in range(count):
            last = all_images and number == count - 1
            stop = samples if last else (number + 1) * batch_size
            yield rows[number * batch_size : stop]


class Stepper:
    """Forward, backward and step of the optimiser on one batch after another.

    ``weighted``: batches add up to one gradient, each by its share of ``samples`` (FedSGD), and
    ``finish`` takes the one step.
    """

    def __init__(
        self,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
        config: TrainingConfig,
        device: torch.device,
        samples: int,
    ) -> None:
        self._module, self._optimiser, self._config = module, optimiser, config
        self._device = device
        self._objective = Objective(config, device)
        self._samples = samples if config.algorithm == "fedsgd" else None
        self._start = [p.detach().clone() for p in module.parameters()] if config.proximal else []
        optimiser.zero_grad(set_to_none=True)

    def step(self, batch: Batch) -> tuple[float, float]:
        """(mean loss, images recognised: objective.recognised)"""
        with autocast(self._config.precision, self._device):
            logits = self._module(batch.images)  # (n, classes) or (n, classes, S, S)
        loss = self._objective(logits, batch)
        if self._samples is None:
            self._optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._apply()
        else:
            (loss * (len(batch.labels) / self._samples)).backward()  # type: ignore[no-untyped-call]
        return float(loss.detach()), float(recognised(logits.detach(), batch.labels))

    def finish(self) -> None:
        if self._samples is not None:
            self._apply()

    def _apply(self) -> None:
        if self._start:
            self._pull()
        if self._config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._module.parameters(), self._config.clip_norm)
        self._optimiser.step()

    def _pull(self) -> None:
        """The gradient of μ/2 |w - w₀|² (FedProx: Li et al., 2020, equation 2)."""
        for parameter, start in zip(self._module.parameters(), self._start, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=self._config.proximal)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bfloat16 for the layers that bear it, on a GPU that has it; else float32."""
    if precision == "mixed" and device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


@contextlib.contextmanager
def deterministic(module: nn.Module, device: torch.device, seed: int) -> Iterator[None]:
    """The same again for the same seed: cuDNN by deterministic kernels; and for modules with
    dropout, which draws from torch's global generator alone, that generator, lent and put back."""
    with contextlib.ExitStack() as stack:
        if device.type == "cuda":
            flags = torch.backends.cudnn.flags(deterministic=True, benchmark=False)
            stack.enter_context(flags)
        if any(isinstance(part, nn.modules.dropout._DropoutNd) for part in module.modules()):
            stack.enter_context(_GLOBAL_GENERATOR)
            devices = [device] if device.type == "cuda" else []
            stack.enter_context(torch.random.fork_rng(devices))
            torch.manual_seed(seed)
        yield
