"""Local training at one site, and evaluation.

Both work on uint8 pixels in memory (or mapped) and on the module in place. Given the seed, the
result is the same again on the same machine and number of threads; torch's global generator is
neither read nor moved, and the number of threads is the caller's.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from primia.errors import InvalidInput, LocalError
from primia.learning.augmentation import augment, augment_both
from primia.learning.batches import (
    Stepper,
    Tally,
    batch_count,
    batches_an_epoch,
    deterministic,
    order,
)
from primia.learning.carried import Carried
from primia.learning.config import TrainingConfig
from primia.learning.images import normalise
from primia.learning.layout import Vector
from primia.learning.memory import images_together
from primia.learning.models import flatten, unflatten
from primia.learning.objective import Batch, dice_loss, mix
from primia.learning.optimisers import (
    create_optimiser,
    optimiser_tensors,
    restore_optimiser,
    set_rate,
)
from primia.learning.schedules import Span, rate_factor
from primia.learning.segmentation import confusion, mean_dice
from primia.learning.spec import ModelSpec

Device = Literal["cpu", "cuda", "auto"]
Progress = Callable[[int, int, float], None]  # (batches done, of how many, last loss)
ShouldStop = Callable[[], bool]

STATISTICS_IMAGES = 128


class TrainingDiverged(LocalError):
    """The loss is not finite: nothing of this round can be used."""

    code = "training-diverged"
    title = "Training diverged"
    status = 422


class TrainingStopped(LocalError):
    """``should_stop`` said so."""

    code = "training-stopped"
    title = "Training was stopped"
    status = 409


@dataclass(frozen=True)
class ImageData:
    """Images and their classes or masks, with the normalisation that the model expects.

    ``pixels``: uint8 (N, C, S, S), may be memory-mapped; ``labels``: int64 (N,), or for
    segmentation masks of class numbers, uint8 (N, S, S).
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[Any]
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]

    @classmethod
    def of(
        cls,
        pixels: NDArray[np.uint8],
        labels: NDArray[Any],
        spec: ModelSpec,
    ) -> ImageData:
        """Checked against the model. Raises InvalidInput."""
        if pixels.dtype != np.uint8 or pixels.shape[1:] != spec.input_shape:
            raise InvalidInput(
                f"The model takes uint8 images of shape {spec.input_shape}, "
                f"not {pixels.dtype} {pixels.shape[1:]}."
            )
        masks = spec.task == "segmentation"
        if masks and labels.shape != (len(pixels), *pixels.shape[2:]):
            raise InvalidInput(f"{pixels.shape} images have masks of shape {labels.shape}.")
        if not masks and labels.shape != pixels.shape[:1]:
            raise InvalidInput(f"{len(pixels)} images have {len(labels)} labels.")
        if labels.size and not 0 <= labels.min() <= labels.max() < len(spec.classes):
            raise InvalidInput(f"Labels are class numbers 0 to {len(spec.classes) - 1}.")
        return cls(pixels, labels, spec.mean, spec.std)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
        """Normalised images float32 (n, C, S, S) and int64 labels (n,), or masks (n, S, S),
        of these rows."""
        images = normalise(self.pixels[index], self.mean, self.std)
        labels = self.labels[index].astype(np.int64, copy=False)
        return torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)

    @property
    def masks(self) -> bool:
        """Whether it is for segmentation."""
        return self.labels.ndim == 3

    @property
    def at_once(self) -> int:
        """Images that pass a model together where nothing is trained."""
        return images_together(self.pixels.shape[-1], masks=self.masks)


@dataclass(frozen=True)
class TrainResult:
    """Mean loss and accuracy (of masks: mean Dice) over the batches trained on (with augmentation,
    as they went by), or of the incoming model at a site that has stopped; ``carried``: for the
    site's next round."""

    loss: float
    accuracy: float
    seconds: float
    batches: int
    samples: int
    carried: Carried


@dataclass(frozen=True)
class EvalResult:
    """``confusion[i][j]``: images (of masks: pixels) of class i that were taken for class j;
    ``accuracy``: of masks the mean Dice over the classes but the background, from all pixels of
    all images together (segmentation.mean_dice)."""

    loss: float
    accuracy: float
    samples: int
    confusion: tuple[tuple[int, ...], ...]

    @property
    def sensitivity(self) -> tuple[float, ...]:
        """The share of each class that was recognised; NaN for a class without images."""
        return tuple(
            row[number] / sum(row) if sum(row) else math.nan
            for number, row in enumerate(self.confusion)
        )


def local_seed(run_seed: int, round_number: int, node: str) -> int:
    """The seed of one site's training in one round: 63 bits of SHA-256."""
    text = f"primia/training/{run_seed}/{round_number}/{node}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def pick_device(wanted: Device = "cpu") -> torch.device:
    """``auto`` takes the GPU where there is one. Raises InvalidInput for a GPU that is missing."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InvalidInput("There is no CUDA device here.", hint="Use the device 'cpu' or 'auto'.")
    return torch.device("cuda")


def train_locally(
    module: nn.Module,
    data: ImageData,
    config: TrainingConfig,
    seed: int,
    *,
    validation: ImageData | None = None,
    span: Span | None = None,
    carried: Carried | None = None,
    device: Device = "cpu",
    should_stop: ShouldStop | None = None,
    progress: Progress | None = None,
    may_return: bool = True,
) -> TrainResult:
    """Train the module in place; it ends on the CPU, in training mode.

    ``validation``: what early stopping measures on; ``span``: the part of the run that this round
    is; ``carried``: what the last round at this site gave; ``may_return``: whether early stopping
    may restore the incoming weights too (in a secure sum no change at all would hide nobody). After
    the last batch BatchNorm's running statistics are measured anew with the final weights
    (``measure_statistics``). A single image
    left over at the end of an epoch is left out: BatchNorm has no statistics of one; for FedSGD it
    joins the batch before it. Raises
    InvalidInput (fewer than two images), TrainingDiverged, or TrainingStopped, which is looked for
    before each batch.
    """
    if len(data) < 2:
        raise InvalidInput(f"Training needs at least two images, not {len(data)}.")
    place = pick_device(device)
    carried = carried or Carried()
    if carried.standing.stopped:
        return _unchanged(module, data, carried, device, should_stop)
    with deterministic(module, place, seed):
        module.to(place).train()
        try:
            session = _Session(module, data, validation, config, seed, place, carried, may_return)
            return session.run(span or Span(), should_stop, progress)
        finally:
            module.to("cpu").train()


def _unchanged(
    module: nn.Module,
    data: ImageData,
    carried: Carried,
    device: Device,
    should_stop: ShouldStop | None,
) -> TrainResult:
    """The round of a site that has stopped: the incoming model, measured on its images."""
    started = time.perf_counter()
    found = evaluate(module, data, device=device, should_stop=should_stop)
    module.train()
    seconds = time.perf_counter() - started
    return TrainResult(found.loss, found.accuracy, seconds, 0, len(data), carried)


class _Session:
    """One round of local training under way."""

    def __init__(
        self,
        module: nn.Module,
        data: ImageData,
        validation: ImageData | None,
        config: TrainingConfig,
        seed: int,
        place: torch.device,
        carried: Carried,
        may_return: bool,
    ) -> None:
        self._may_return = may_return
        self._module, self._data, self._config, self._place = module, data, config, place
        self._watched = validation if config.local_stopping else None
        self._generator = torch.Generator().manual_seed(seed)
        self._optimiser = create_optimiser(module, config)
        if carried.optimiser and config.optimiser_state == "kept":
            restore_optimiser(self._optimiser, carried.optimiser)
        self._standing = carried.standing
        self._best: tuple[float, Vector] | None = None

    def run(
        self, span: Span, should_stop: ShouldStop | None, progress: Progress | None
    ) -> TrainResult:
        started = time.perf_counter()
        config, samples = self._config, len(self._data)
        rate = config.hyperparameters.learning_rate
        total, epoch = batch_count(samples, config), batches_an_epoch(samples, config.batch_size)
        stepper = Stepper(self._module, self._optimiser, config, self._place, samples)
        rows = order(
            samples,
            config.batch_size,
            self._generator,
            all_images=config.algorithm == "fedsgd",  # its step is along the gradient over all
        )
        tally, number = Tally(), 0
        if self._may_return:
            self._check(should_stop, first=True)
        for number in range(1, total + 1):
            if should_stop and should_stop():
                raise TrainingStopped(f"Training was stopped before batch {number} of {total}.")
            # FedSGD's one step comes after the last batch, at the rate that the round begins with
            done = span.start if config.algorithm == "fedsgd" else span.at(number - 1, total)
            factor = rate_factor(config.schedule, done)
            set_rate(self._optimiser, rate * factor)
            batch = self._batch(next(rows))
            tally.add(*stepper.step(batch), len(batch.labels))
            if not math.isfinite(tally.last):
                raise TrainingDiverged(
                    f"The loss is not finite in batch {number} of {total}.",
                    hint="Use a smaller learning rate.",
                )
            if progress:
                progress(number, total, tally.last)
            if number % epoch == 0 or number == total:
                if number == total:
                    stepper.finish()
                self._check(should_stop)
                if self._standing.stopped:
                    break
        self._settle()
        seconds = time.perf_counter() - started
        return TrainResult(
            tally.loss, tally.accuracy, seconds, number, tally.samples, self._carried()
        )

    def _batch(self, index: NDArray[np.int64]) -> Batch:
        images, labels = self._data.batch(index, self._place)
        if self._config.augment:
            data, variation = self._data, self._config.augmentation
            if data.masks:
                images, labels = augment_both(
                    images, labels, self._generator, variation, data.mean, data.std
                )
            else:
                images = augment(images, self._generator, variation, data.mean, data.std)
        return mix(images, labels, self._config.mixup, self._generator)

    def _check(self, should_stop: ShouldStop | None, *, first: bool = False) -> None:
        """Early stopping looks at the validation images; ``first``: at the incoming weights, which
        are only there to be restored."""
        rule, watched = self._config.local_stopping, self._watched
        if rule is None or watched is None:
            return
        if not first:
            measure_statistics(self._module, self._data, self._place)
        found = _measured(self._module, watched, self._place, should_stop)
        self._module.train()
        value = found.loss if rule.measure == "loss" else found.accuracy
        if not first:
            self._standing = self._standing.after(value, rule)
        best = None if self._best is None else self._best[0]
        if rule.restore_best and math.isfinite(value) and rule.better(value, best):
            self._best = (value, flatten(self._module))

    def _settle(self) -> None:
        """The round's last weights; or, where it ends by stopping, its best."""
        if self._standing.stopped and self._best is not None:
            unflatten(self._module, self._best[1])
        else:
            measure_statistics(self._module, self._data, self._place)

    def _carried(self) -> Carried:
        kept = self._config.optimiser_state == "kept"
        return Carried(optimiser_tensors(self._optimiser) if kept else {}, self._standing)


def measure_statistics(module: nn.Module, data: ImageData, device: torch.device) -> None:
    """Set BatchNorm's running statistics to their mean over up to 128 of the images.

    A round is a few batches long: running averages still hold the statistics of earlier weights
    and jump about from round to round (benchmarks/federated_defaults.py shows what that costs).
    The images are spread evenly over the data set, without variation; the module must be in
    training mode.
    """
    layers = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    usual = [layer.momentum for layer in layers]
    count = min(len(data), STATISTICS_IMAGES)
    index = np.arange(count) * len(data) // count  # (count,)
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over the batches
    with torch.no_grad():
        for part in np.array_split(index, math.ceil(count / data.at_once)):
            module(data.batch(part, device)[0])
    for layer, momentum in zip(layers, usual, strict=True):
        layer.momentum = momentum


def predict(
    module: nn.Module,
    data: ImageData,
    *,
    device: Device = "cpu",
    should_stop: ShouldStop | None = None,
) -> NDArray[np.float32]:
    """Logits (N, classes) in evaluation mode; the module ends on the CPU, in evaluation mode."""
    place = pick_device(device)
    module.to(place)
    try:
        return _logits(module, data, place, should_stop)
    finally:
        module.to("cpu")


def _logits(
    module: nn.Module, data: ImageData, place: torch.device, should_stop: ShouldStop | None
) -> NDArray[np.float32]:
    """Logits (N, classes) of a module that lies in its place; it ends in evaluation mode."""
    return torch.cat([rows for _, rows in _parts(module, data, place, should_stop)]).numpy()


def _parts(
    module: nn.Module, data: ImageData, place: torch.device, should_stop: ShouldStop | None
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """(row numbers, their logits), some images at a time."""
    if not len(data):
        raise InvalidInput("There are no images to evaluate on.")
    module.eval()
    images = data.at_once
    for start in range(0, len(data), images):
        if should_stop and should_stop():
            raise TrainingStopped(f"Evaluation was stopped at image {start}.")
        index = np.arange(start, min(start + images, len(data)))
        with torch.inference_mode():
            rows = module(data.batch(index, place)[0]).cpu()
        yield index, rows


def predict_pixels(
    module: nn.Module,
    data: ImageData,
    *,
    device: Device = "cpu",
    should_stop: ShouldStop | None = None,
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Of masks: logits (P, K) and class numbers (P,) of the pixels of some images at a time, in
    order. The module ends on the CPU, in evaluation mode."""
    place = pick_device(device)
    module.to(place)
    try:
        for index, rows in _parts(module, data, place, should_stop):
            logits = np.moveaxis(rows.numpy(), 1, -1).reshape(-1, rows.shape[1])
            yield logits, data.labels[index].astype(np.int64).ravel()
    finally:
        module.to("cpu")


def evaluate(
    module: nn.Module,
    data: ImageData,
    *,
    device: Device = "cpu",
    should_stop: ShouldStop | None = None,
) -> EvalResult:
    """Cross-entropy, accuracy and confusion matrix of the module on the images."""
    place = pick_device(device)
    module.to(place)
    try:
        return _measured(module, data, place, should_stop)
    finally:
        module.to("cpu")


def _measured(
    module: nn.Module, data: ImageData, place: torch.device, should_stop: ShouldStop | None
) -> EvalResult:
    """Of a module that lies in its place; it ends in evaluation mode."""
    if not data.masks:
        return _figures(_logits(module, data, place, should_stop), data)
    loss, table = 0.0, np.zeros((1, 1), np.int64)
    for index, logits in _parts(module, data, place, should_stop):
        masks = data.labels[index].astype(np.int64)
        truth = torch.from_numpy(masks)
        each = functional.cross_entropy(logits, truth) + dice_loss(logits, truth)
        loss += float(each) * len(index)
        table = table + confusion(logits.argmax(dim=1).numpy(), masks, logits.shape[1])
    return EvalResult(
        loss=loss / len(data),
        accuracy=mean_dice(table),
        samples=len(data),
        confusion=tuple(tuple(int(cell) for cell in row) for row in table),
    )


def _figures(logits: NDArray[np.float32], data: ImageData) -> EvalResult:
    """Logits (N, K)"""
    classes = logits.shape[1]
    loss = functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(data.labels))
    cells = np.bincount(data.labels * classes + logits.argmax(axis=1), minlength=classes**2)
    confusion = cells.reshape(classes, classes)
    return EvalResult(
        loss=float(loss),
        accuracy=float(np.trace(confusion) / len(data)),
        samples=len(data),
        confusion=tuple(tuple(int(cell) for cell in row) for row in confusion),
    )
