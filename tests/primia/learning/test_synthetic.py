from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from primia.errors import InvalidInput
from primia.learning.cache import load_pixels
from primia.learning.config import TrainingConfig
from primia.learning.datasets import inspect, scan_folder
from primia.learning.manifest import DatasetManifest, partition, split
from primia.learning.models import create_model
from primia.learning.spec import ModelSpec
from primia.learning.synthetic import CLASSES, Anatomy, draw, draw_dataset
from primia.learning.training import ImageData, evaluate, train_locally
from primia.prg import Seed

SEED = Seed(bytes(15) + b"\1")


def _manifest(root: Path) -> DatasetManifest:
    found = inspect(scan_folder(root))
    assert found.problems == ()
    assert found.manifest is not None
    return found.manifest


def test_a_drawn_data_set_is_a_sound_data_set(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    written = draw_dataset(tmp_path, 6, 3, 1, 48, lambda *step: steps.append(step))
    manifest = _manifest(tmp_path)
    assert written == len(manifest) == 18
    assert steps == [(number, 18) for number in range(1, 19)]
    assert manifest.counts == {"bacterial": 6, "normal": 6, "viral": 6}
    assert manifest.patients == 9
    assert [len(part) for part in partition(manifest, 3, seed=0)] == [6, 6, 6]


def test_the_same_seed_draws_the_same_files(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        draw_dataset(tmp_path / name, 2, 1, seed, 32)
    digests = [_manifest(tmp_path / name).digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_files_say_that_they_are_drawn(tmp_path: Path) -> None:
    draw_dataset(tmp_path, 1, 1, 0, 32)
    for file in tmp_path.rglob("*.jpeg"):
        with Image.open(file) as image:
            assert b"shows no patient" in image.info["comment"]
            assert image.size == (32, 32)


@pytest.mark.parametrize("label", CLASSES)
def test_pictures_use_the_grey_scale_and_differ(label: str) -> None:
    anatomy = Anatomy.of(SEED, label)
    pictures = [draw(label, anatomy, SEED, number, 64) for number in range(4)]
    for picture in pictures:
        assert picture.dtype == np.uint8
        assert picture.shape == (64, 64)
        assert np.ptp(picture) > 120
        assert picture.std() > 25
    assert not np.array_equal(pictures[0], pictures[1])


def test_lungs_are_darker_than_the_middle_and_the_abdomen() -> None:
    pictures = [draw("normal", Anatomy.of(SEED, str(n)), SEED, n, 64) for n in range(12)]
    mean = np.mean(pictures, axis=0)
    lung = mean[22:38, 16:22].mean()
    assert lung + 25 < mean[22:38, 30:34].mean()
    assert lung + 25 < mean[54:60, 24:40].mean()
    assert mean[:4, :4].mean() < 40  # beside the neck there is air


def test_illness_brightens_the_lungs() -> None:
    def lungs(label: str) -> float:
        pictures = [draw(label, Anatomy.of(SEED, str(n)), SEED, n, 64) for n in range(30)]
        return float(np.mean(pictures, axis=0)[20:42, [*range(14, 24), *range(42, 50)]].mean())

    assert lungs("bacterial") > lungs("normal") + 2
    assert lungs("viral") > lungs("normal") + 2


@pytest.mark.parametrize(
    ("images", "patients", "seed", "size"),
    [(0, 0, 0, 64), (2, 3, 0, 64), (2, 0, 0, 64), (10_001, 1, 0, 64), (1, 1, -1, 64), (1, 1, 0, 8)],
)
def test_what_cannot_be_drawn(
    tmp_path: Path, images: int, patients: int, seed: int, size: int
) -> None:
    with pytest.raises(InvalidInput):
        draw_dataset(tmp_path, images, patients, seed, size)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bacterial").write_text("a file where the folder should be")
    with pytest.raises(OSError):
        draw_dataset(tmp_path, 1, 1, 0, 32)


def test_a_small_model_learns_from_them(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    draw_dataset(tmp_path / "chest", 80, 40, 3, 48)
    manifest = _manifest(tmp_path / "chest")
    spec = ModelSpec(architecture="small_cnn", classes=CLASSES, image_size=48)
    parts = []
    for part in split(manifest, 0.25, seed=0):
        pixels = load_pixels(part, tmp_path / "chest", 48, 1, tmp_path / "cache")
        parts.append(ImageData.of(pixels, part.labels(CLASSES), spec))
    module = create_model(spec)
    config = TrainingConfig(epochs=6, optimiser="adam", learning_rate=5e-3, batch_size=16)
    train_locally(module, parts[0], config, seed=1)
    accuracy = evaluate(module, parts[1]).accuracy
    record_property("accuracy", accuracy)
    assert accuracy > 0.5  # a guess is right in a third
