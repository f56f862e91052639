"""On real radiographs: split by patient, train, classify encrypted. Needs PRIMIA_TEST_DATA."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from primia.learning import datasets
from primia.learning.config import TrainingConfig
from primia.learning.images import load, normalise
from primia.learning.manifest import DatasetManifest, partition, sample
from primia.learning.models import create_model
from primia.learning.spec import ModelSpec
from primia.learning.training import ImageData, train_locally
from primia.mpc.compile import compile_model
from primia.mpc.compile_windows import calibrate
from tests.support.inference import Session

FOLDER = os.environ.get("PRIMIA_TEST_DATA")
pytestmark = [
    pytest.mark.realdata,
    pytest.mark.slow,
    pytest.mark.skipif(FOLDER is None, reason="PRIMIA_TEST_DATA names no radiographs"),
]
SIZE = 64
MEASURED = 6


def manifest(part: str) -> DatasetManifest:
    found = datasets.inspect(datasets.scan_folder(Path(FOLDER or "") / part))
    assert {problem.severity for problem in found.problems} <= {"note"}  # the same file twice
    assert found.manifest is not None
    return found.manifest


@pytest.fixture(scope="module")
def training() -> DatasetManifest:
    return manifest("train")


@pytest.fixture(scope="module")
def testing() -> DatasetManifest:
    return manifest("test")


def pictures(chosen: DatasetManifest, part: str, spec: ModelSpec) -> ImageData:
    root = Path(FOLDER or "") / part
    pixels = np.stack([load(root / entry.path, SIZE, spec.channels) for entry in chosen.entries])
    labels = [spec.classes.index(entry.label) for entry in chosen.entries]
    return ImageData.of(pixels, np.array(labels, np.int64), spec)


def test_no_patient_stands_at_two_sites(training):
    sites = partition(training, 3, seed=1)
    patients = [{entry.patient for entry in site.entries} for site in sites]
    assert sum(len(site) for site in sites) == len(training) > 5000
    assert not patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2]
    shares = [len(site) / len(training) for site in sites]
    assert max(shares) - min(shares) < 0.05


@pytest.fixture(scope="module")
def trained(training):
    """A ResNet-18 after an epoch on a sample, and the sample."""
    chosen = sample(training, 160, seed=2)
    spec = ModelSpec(
        architecture="resnet18", classes=tuple(training.classes), image_size=SIZE, channels=1
    )
    data = pictures(chosen, "train", spec)
    module = create_model(spec)
    train_locally(module, data, TrainingConfig(epochs=1), seed=5)
    return spec, module.eval(), data


@pytest.mark.parametrize("accuracy", ["exact", "calibrated"])
def test_encrypted_predictions_of_radiographs_are_the_plain_ones(trained, testing, accuracy):
    spec, module, data = trained
    tested = pictures(sample(testing, MEASURED, seed=3), "test", spec)
    model = compile_model(module, spec.input_shape)
    if accuracy == "calibrated":
        model = calibrate(model, normalise(data.pixels[::10], spec.mean, spec.std))
    images = normalise(tested.pixels, spec.mean, spec.std)
    with torch.inference_mode():
        plain = module(torch.from_numpy(images)).double().numpy()
    scores = Session(model.plan, model.weights, len(images)).run(images)
    bound = 0.01 if accuracy == "exact" else 0.05
    assert np.abs(scores - plain).max() < bound
    gaps = np.sort(plain, axis=1)
    clear = gaps[:, -1] - gaps[:, -2] > 2 * bound
    assert clear.any()
    np.testing.assert_array_equal(scores.argmax(1)[clear], plain.argmax(1)[clear])
