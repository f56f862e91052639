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
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from primia.errors import InvalidInput, LocalError
from primia.learning.augmentation import augment
from primia.learning.images import normalise
from primia.learning.spec import ModelSpec, TrainingConfig

Device = Literal["cpu", "cuda", "auto"]
Progress = Callable[[int, int, float], None]  # (batches done, of how many, last loss)
ShouldStop = Callable[[], bool]

EVALUATION_BATCH = 64
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
    """Images and their classes, with the normalisation that the model expects.

    ``pixels``: uint8 (N, C, S, S), may be memory-mapped; ``labels``: int64 (N,).
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    mean: float
    std: float

    @classmethod
    def of(cls, pixels: NDArray[np.uint8], labels: NDArray[np.int64], spec: ModelSpec) -> ImageData:
        """Checked against the model. Raises InvalidInput."""
        if pixels.dtype != np.uint8 or pixels.shape[1:] != spec.input_shape:
            raise InvalidInput(
                f"The model takes uint8 images of shape {spec.input_shape}, "
                f"not {pixels.dtype} {pixels.shape[1:]}."
            )
        if labels.shape != pixels.shape[:1]:
            raise InvalidInput(f"{len(pixels)} images have {len(labels)} labels.")
        if labels.size and not 0 <= labels.min() <= labels.max() < len(spec.classes):
            raise InvalidInput(f"Labels are class numbers 0 to {len(spec.classes) - 1}.")
        return cls(pixels, labels, spec.mean, spec.std)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
        """Normalised images float32 (n, C, S, S) and labels (n,) of these rows."""
        images = normalise(self.pixels[index], self.mean, self.std)
        return torch.from_numpy(images).to(device), torch.from_numpy(self.labels[index]).to(device)


@dataclass(frozen=True)
class TrainResult:
    """Mean loss and accuracy over the batches trained on (with augmentation, as they went by)."""

    loss: float
    accuracy: float
    seconds: float
    batches: int
    samples: int


@dataclass(frozen=True)
class EvalResult:
    """``confusion[i][j]``: images of class i that were taken for class j."""

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
    device: Device = "cpu",
    should_stop: ShouldStop | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train the module in place; it ends on the CPU, in training mode.

    After the last batch BatchNorm's running statistics are measured anew with the final weights
    (``measure_statistics``). A single image left over at the end of an epoch is left out:
    BatchNorm has no statistics of one. Raises InvalidInput (fewer than two images),
    TrainingDiverged, or TrainingStopped, which is looked for before each batch.
    """
    if len(data) < 2:
        raise InvalidInput(f"Training needs at least two images, not {len(data)}.")
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    place = pick_device(device)
    module.to(place).train()
    total = _batch_count(len(data), config)
    tally = _Tally()
    try:
        optimiser = _optimiser(module, config)
        for number, index in zip(
            range(1, total + 1), _order(len(data), config.batch_size, generator), strict=False
        ):
            if should_stop and should_stop():
                raise TrainingStopped(f"Training was stopped before batch {number} of {total}.")
            images, labels = data.batch(index, place)
            if config.augment:
                images = augment(images, generator)
            tally.add(*_step(module, optimiser, images, labels), len(labels))
            if not math.isfinite(tally.last):
                raise TrainingDiverged(
                    f"The loss is not finite in batch {number} of {total}.",
                    hint="Use a smaller learning rate.",
                )
            if progress:
                progress(number, total, tally.last)
        measure_statistics(module, data, place)
    finally:
        module.to("cpu")
    seconds = time.perf_counter() - started
    return TrainResult(tally.loss, tally.accuracy, seconds, total, tally.samples)


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
        for part in np.array_split(index, math.ceil(count / EVALUATION_BATCH)):
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
    module.to(place).eval()
    rows: list[Tensor] = []
    try:
        with torch.inference_mode():
            for start in range(0, len(data), EVALUATION_BATCH):
                if should_stop and should_stop():
                    raise TrainingStopped(f"Evaluation was stopped at image {start}.")
                index = np.arange(start, min(start + EVALUATION_BATCH, len(data)))
                rows.append(module(data.batch(index, place)[0]).cpu())
    finally:
        module.to("cpu")
    if not rows:
        raise InvalidInput("There are no images to evaluate on.")
    return torch.cat(rows).numpy()


def evaluate(
    module: nn.Module,
    data: ImageData,
    *,
    device: Device = "cpu",
    should_stop: ShouldStop | None = None,
) -> EvalResult:
    """Cross-entropy, accuracy and confusion matrix of the module on the images."""
    logits = predict(module, data, device=device, should_stop=should_stop)  # (N, K)
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


class _Tally:
    """Sums over the batches so far."""

    def __init__(self) -> None:
        self.samples = 0
        self.last = 0.0
        self._loss = 0.0
        self._right = 0

    def add(self, loss: float, right: int, samples: int) -> None:
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


def _step(
    module: nn.Module, optimiser: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> tuple[float, int]:
    """One batch forward, backward, step: (mean loss, images recognised)."""
    optimiser.zero_grad(set_to_none=True)
    logits = module(images)  # (n, classes)
    loss = functional.cross_entropy(logits, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    right = (logits.detach().argmax(dim=1) == labels).sum()
    return float(loss.detach()), int(right)


def _batch_count(samples: int, config: TrainingConfig) -> int:
    if config.batches is not None:
        return config.batches
    whole, rest = divmod(samples, config.batch_size)
    return (config.epochs or 1) * (whole + (rest >= 2))


def _order(
    samples: int, batch_size: int, generator: torch.Generator
) -> Iterator[NDArray[np.int64]]:
    """Batches of row numbers, one freshly drawn order after another, without end."""
    while True:
        order = torch.randperm(samples, generator=generator).numpy()
        for start in range(0, samples, batch_size):
            index = order[start : start + batch_size]
            if len(index) >= 2:
                yield index


def _optimiser(module: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    parameters = list(module.parameters())
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimiser == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=config.momentum, weight_decay=decay)
    kind = torch.optim.Adam if config.optimiser == "adam" else torch.optim.AdamW
    return kind(parameters, rate, betas=(config.momentum, 0.999), weight_decay=decay)
