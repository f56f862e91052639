"""Federated averaging of ResNet-18 from scratch, all sites in one process: do the defaults learn?

    python -m benchmarks.federated_defaults TRAIN_FOLDER TEST_FOLDER [--images 900] [--rounds 8] …

The folders hold one subfolder a class. ``images`` of the training folder go to the sites, disjoint
by patient; others of it, also disjoint by patient, are the validation images that a choice of
parameters may look at; the test folder is only reported. ``--statistics running`` shows what the
running averages of BatchNorm are worth instead of statistics measured after each round.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn

from primia.evaluation.metrics import measure
from primia.learning import training
from primia.learning.cache import load_pixels
from primia.learning.config import TrainingConfig
from primia.learning.datasets import inspect, scan_folder
from primia.learning.layout import Vector
from primia.learning.manifest import DatasetManifest, partition, sample
from primia.learning.models import create_model, flatten, unflatten
from primia.learning.spec import ModelSpec
from primia.learning.training import ImageData, evaluate, local_seed, predict, train_locally

_DEFAULTS = TrainingConfig(epochs=1)


@dataclass(frozen=True)
class Federation:
    spec: ModelSpec
    sites: tuple[ImageData, ...]
    validation: ImageData
    test: ImageData


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--images", type=int, default=900, help="of all sites together")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--optimiser", default=_DEFAULTS.optimiser)
    parser.add_argument("--learning-rate", type=float, default=_DEFAULTS.learning_rate)
    parser.add_argument("--weight-decay", type=float, default=_DEFAULTS.weight_decay)
    parser.add_argument("--batch-size", type=int, default=_DEFAULTS.batch_size)
    parser.add_argument("--augment", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--statistics", choices=("measured", "running"), default="measured")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def manifest_of(folder: Path) -> DatasetManifest:
    found = inspect(scan_folder(folder))
    if found.manifest is None or found.errors:
        raise SystemExit("\n".join(str(problem) for problem in found.errors))
    return found.manifest


def federation(options: argparse.Namespace, cache: Path) -> Federation:
    everything, test = manifest_of(options.train), manifest_of(options.test)
    used = sample(everything, options.images, options.seed)
    patients = {entry.patient for entry in used.entries}
    rest = everything.only({entry.patient for entry in everything.entries} - patients)
    spec = ModelSpec(
        architecture=options.architecture,
        classes=everything.classes,
        image_size=options.size,
        seed=options.seed,
    )

    def data(manifest: DatasetManifest, root: Path) -> ImageData:
        pixels = load_pixels(manifest, root, options.size, 1, cache)
        return ImageData.of(pixels, manifest.labels(spec.classes), spec)

    parts = partition(used, options.sites, options.seed)
    print("images a site:", [part.counts for part in parts])
    return Federation(
        spec,
        tuple(data(part, options.train) for part in parts),
        data(sample(rest, 500, options.seed), options.train),
        data(test, options.test),
    )


def average(updates: list[Vector], sites: tuple[ImageData, ...]) -> Vector:
    weights = np.array([len(site) for site in sites]) / sum(len(site) for site in sites)
    return np.tensordot(weights, np.stack(updates), axes=1).astype(np.float32)


@contextmanager
def statistics(kind: str) -> Iterator[None]:
    if kind == "measured":
        yield
    else:
        with mock.patch.object(training, "measure_statistics"):
            yield


def run(setting: Federation, config: TrainingConfig, options: argparse.Namespace) -> nn.Module:
    module = create_model(setting.spec)
    state = flatten(module)
    spent = 0.0
    for number in range(1, options.rounds + 1):
        updates, losses = [], []
        for place, site in enumerate(setting.sites):
            unflatten(module, state)
            seed = local_seed(options.seed, number, f"site {place}")
            result = train_locally(module, site, config, seed)
            updates.append(flatten(module))
            losses.append(result.loss)
            spent += result.seconds
        state = average(updates, setting.sites)
        unflatten(module, state)
        found = evaluate(module, setting.validation)
        print(
            f"round {number:2}: training loss {np.mean(losses):.3f}, validation loss "
            f"{found.loss:.3f}, accuracy {found.accuracy:.3f}, {spent:.0f} s of training so far",
            flush=True,
        )
    return module


def report(module: nn.Module, setting: Federation) -> None:
    found = measure(predict(module, setting.test), setting.test.labels, setting.spec.classes)
    majority = max(one.images for one in found.classes) / found.samples
    print(
        f"test: {found.samples} images, accuracy {found.accuracy:.3f} (majority {majority:.3f}), "
        f"balanced {found.balanced_accuracy:.3f}, AUC {found.auc:.3f}, MCC {found.mcc:.3f}"
    )
    for one in found.classes:
        print(
            f"  {one.label}: sensitivity {one.sensitivity:.3f}, specificity {one.specificity:.3f}"
        )


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    config = TrainingConfig(
        epochs=1,
        optimiser=options.optimiser,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        batch_size=options.batch_size,
        augment=options.augment,
    )
    print(config)
    with tempfile.TemporaryDirectory() as cache, statistics(options.statistics):
        setting = federation(options, Path(cache))
        started = time.process_time()
        module = run(setting, config, options)
        report(module, setting)
        print(f"{time.process_time() - started:.0f} s of processor time in all")


if __name__ == "__main__":
    main()
