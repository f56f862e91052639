"""Models and images for the inference benchmark: weights that compile and mean something."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from primia.client import ModelOwner
from primia.learning import images, synthetic
from primia.learning.config import TrainingConfig
from primia.learning.datasets import inspect, scan_folder
from primia.learning.layout import write_state
from primia.learning.manifest import DatasetManifest, sample
from primia.learning.models import create_model, flatten, state_layout
from primia.learning.spec import ModelSpec
from primia.learning.training import ImageData, measure_statistics, train_locally
from primia.messages.registry import NewModel, VersionReport

_STATISTICS_IMAGES = 32
_DRAWN_PATIENTS = 40


@dataclass(frozen=True)
class Pictures:
    """``files`` with their class numbers, none of a patient of ``training``."""

    source: str
    classes: tuple[str, ...]
    training: tuple[tuple[Path, int], ...]
    files: tuple[tuple[Path, int], ...]

    def pixels(self, spec: ModelSpec, chosen: Sequence[tuple[Path, int]]) -> ImageData:
        loaded = [images.load(path, spec.image_size, spec.channels) for path, _ in chosen]
        labels = np.array([label for _, label in chosen], dtype=np.int64)
        return ImageData(np.stack(loaded), labels, spec.mean, spec.std)


def pictures(data: Path | None, folder: Path, training: int, tests: int) -> Pictures:
    """Radiographs of ``data`` (with train/ and test/ below), or drawn ones in ``folder``."""
    if data is None:
        root = folder / "drawn"
        if not root.exists():
            synthetic.draw_dataset(root, 6 * _DRAWN_PATIENTS, _DRAWN_PATIENTS, 1, 224)
        train, test, source = root, root, "radiograph-like images drawn by the project"
    else:
        train, test, source = data / "train", data / "test", f"radiographs of {data.name}"
    found = [_manifest(train), _manifest(test)]
    chosen = [
        sample(found[0], min(training, len(found[0])), 1),
        sample(found[1], min(tests, len(found[1])), 2),
    ]
    parts = [
        tuple(
            (root / entry.path, label)
            for entry, label in zip(part.entries, part.labels(), strict=True)
        )
        for part, root in zip(chosen, (train, test), strict=True)
    ]
    return Pictures(source, found[0].classes, *parts)


def _manifest(folder: Path) -> DatasetManifest:
    found = inspect(scan_folder(folder))
    if found.manifest is None:
        raise SystemExit("\n".join(str(problem) for problem in found.errors))
    return found.manifest


def untrained(spec: ModelSpec, given: Pictures) -> torch.nn.Module:
    """First weights, and BatchNorm statistics of real images: without them values would grow from
    block to block."""
    module = create_model(spec)
    data = given.pixels(spec, given.files[:_STATISTICS_IMAGES])
    measure_statistics(module.train(), data, torch.device("cpu"))
    return module.eval()


def trained(spec: ModelSpec, given: Pictures, size: int, seconds: float) -> torch.nn.Module:
    """Trained on images of ``size`` for about so long, then with the statistics of the spec's own
    image size: the weights do not depend on it."""
    small = ModelSpec.parse({**spec.model_dump(mode="json"), "image_size": size})
    module, data = create_model(small), given.pixels(small, given.training)
    deadline, turn = time.monotonic() + seconds, 0
    while turn == 0 or time.monotonic() < deadline:
        train_locally(module, data, TrainingConfig(epochs=1, batch_size=32), seed=turn)
        turn += 1
    statistics = given.pixels(spec, given.training[:_STATISTICS_IMAGES])
    measure_statistics(module.train(), statistics, torch.device("cpu"))
    return module.eval()


def tensors(module: torch.nn.Module) -> dict[str, NDArray[Any]]:
    """Name -> float32 array, without BatchNorm's counters."""
    return {
        name: value.detach().numpy()
        for name, value in module.state_dict().items()
        if value.is_floating_point()
    }


def logits(module: torch.nn.Module, data: ImageData) -> NDArray[np.float64]:
    """In the clear, float32 torch: (N, classes)."""
    rows = []
    with torch.inference_mode():
        for start in range(0, len(data), 16):
            index = np.arange(start, min(start + 16, len(data)))
            rows.append(module(data.batch(index, torch.device("cpu"))[0]).double().numpy())
    return np.concatenate(rows)


def upload(owner: ModelOwner, name: str, spec: ModelSpec, module: torch.nn.Module) -> VersionReport:
    """Registered under the name, these weights as version 2."""
    fields = spec.model_dump(mode="json")
    owner.create_model(NewModel.model_validate({"name": name, **fields}))
    owner.wait_version(name, 1)
    body = write_state(flatten(module), state_layout(module))
    answer = owner.http.request("POST", f"/models/{name}/versions", content=body, timeout=120)
    found = owner.http.parse(answer, VersionReport)
    return owner.wait_version(name, found.version)
