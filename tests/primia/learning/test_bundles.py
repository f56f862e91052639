"""A MONAI bundle, as it is, between flat states."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.fl.client import ClientAlgo
from monai.fl.utils.constants import WeightType
from monai.fl.utils.exchange_object import ExchangeObject

from primia.errors import InvalidInput
from primia.learning import bundles
from primia.learning.bundles import BundleFailed, BundleMismatch
from primia.learning.layout import Layout
from tests.support.bundles import write_bundle
from tests.support.radiographs import draw

CLASSES = ("normal", "pneumonia")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "own")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("images") / "set", 5, seed=1, classes=CLASSES)


def test_a_bundle_trains_from_the_weights_received_and_gives_the_difference(folder, pictures):
    layout, first = bundles.read_network(folder)
    assert layout.group_size("buffers") > 0  # BatchNorm's
    start = (first + 0.01).astype(np.float32)
    algo = bundles.open_bundle(folder, "hospital-a", pictures, 2, layout)
    looked = []
    trained = bundles.train(algo, layout, start, lambda: looked.append(1))
    assert (trained.samples, len(looked)) == (10, 6)  # 2 epochs of 10 images in batches of 4
    assert 1e-4 < np.abs(trained.change).max() < 10
    again = bundles.train(algo, layout, start + trained.change)
    assert not np.array_equal(again.change, trained.change)
    found = bundles.evaluate(algo, layout, start + trained.change)
    assert 0 <= found["accuracy"] <= 1
    assert bundles.evaluated_samples(algo) == 10
    bundles.close(algo)


def test_a_bundle_without_evaluation_has_no_scores(pictures, tmp_path: Path):
    folder = write_bundle(tmp_path / "own", evaluation=False)
    layout, first = bundles.read_network(folder)
    algo = bundles.open_bundle(folder, "hospital-a", pictures, 1, layout.digest)
    assert bundles.evaluate(algo, layout, first) == {}
    assert bundles.evaluated_samples(algo) == 0


def test_a_network_with_another_state_is_refused(folder, pictures, tmp_path: Path):
    other = write_bundle(tmp_path / "other", channels=(4, 6))
    layout, _ = bundles.read_network(folder)
    with pytest.raises(BundleMismatch, match=layout.digest):
        bundles.open_bundle(other, "hospital-a", pictures, 1, layout)


def test_what_stops_the_training_comes_through(folder, pictures):
    layout, first = bundles.read_network(folder)
    algo = bundles.open_bundle(folder, "hospital-a", pictures, 1, layout)

    class Ended(Exception):
        pass

    def stop() -> None:
        raise Ended

    with pytest.raises(Ended):
        bundles.train(algo, layout, first, stop)


def test_what_fails_in_a_bundle_is_its_failure(folder, tmp_path: Path):
    layout, first = bundles.read_network(folder)
    (tmp_path / "empty").mkdir()
    algo = bundles.open_bundle(folder, "hospital-a", tmp_path / "empty", 1, layout)
    with pytest.raises(BundleFailed, match="no images"):
        bundles.train(algo, layout, first)
    with pytest.raises(BundleFailed, match="could not be trained: RuntimeError"):
        bundles.train(algo, LAYOUT, np.zeros(7, np.float32))
    broken = write_bundle(tmp_path / "broken")
    path = broken / "configs" / "train.json"
    config = json.loads(path.read_text())
    config["network_def"] = {"_target_": "nowhere.Network"}
    path.write_text(json.dumps(config))
    with pytest.raises(BundleFailed, match=r"is missing: .*nowhere"):
        bundles.read_network(broken)
    with pytest.raises(InvalidInput, match="no MONAI bundle"):
        bundles.read_network(tmp_path)


class Own(ClientAlgo):
    """A ClientAlgo of somebody's own: no engine, whole weights."""

    def __init__(self, **given) -> None:
        self.given, self.trainer = given, None

    def train(self, data, extra=None) -> None:
        self.weights = {name: value + 1 for name, value in data.weights.items()}

    def get_weights(self, extra=None) -> ExchangeObject:
        values = {"weights": self.weights, "weight_type": WeightType.WEIGHTS, **self.given}
        return ExchangeObject(**values)


LAYOUT = Layout.of([("a", (2, 2), "parameters"), ("b", (3,), "buffers")])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"weights": {"a": torch.zeros(2, 2)}}, "no tensor 'b' of shape"),
        ({"weights": {"a": torch.zeros(4), "b": torch.zeros(3)}}, "no tensor 'a' of shape"),
        ({"weights": None}, "no tensor 'a'"),
        ({"weight_type": None}, "neither weights nor differences"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(given, named, monkeypatch):
    monkeypatch.setattr(bundles, "_samples", lambda _algo: 1)
    with pytest.raises(BundleFailed) as caught:
        bundles.train(Own(**given), LAYOUT, np.zeros(7, np.float32))
    assert named in str(caught.value)


def test_whole_weights_become_a_difference(monkeypatch):
    monkeypatch.setattr(bundles, "_samples", lambda _algo: 1)
    found = bundles.train(Own(), LAYOUT, np.arange(7, dtype=np.float32))
    np.testing.assert_array_equal(found.change, np.ones(7, np.float32))
