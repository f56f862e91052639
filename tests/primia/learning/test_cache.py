import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from primia.errors import InvalidInput, StorageFull
from primia.learning.cache import DatasetChanged, cache_file, load_pixels
from primia.learning.datasets import inspect, scan_folder
from primia.learning.images import load
from primia.learning.manifest import DatasetManifest
from primia.learning.storage import full_disk_is_an_error, replacing

Draw = Callable[[Path, int], Path]


@pytest.fixture
def root(tmp_path: Path, draw: Draw) -> Path:
    for number in range(4):
        draw(tmp_path / "chest" / "ab"[number % 2] / f"{number}.png", number)
    return tmp_path / "chest"


@pytest.fixture
def manifest(root: Path) -> DatasetManifest:
    found = inspect(scan_folder(root)).manifest
    assert found is not None
    return found


def test_pixels_are_those_that_inference_sees(
    root: Path, manifest: DatasetManifest, tmp_path: Path
) -> None:
    pixels = load_pixels(manifest, root, 32, 3, tmp_path / "cache")
    assert pixels.shape == (4, 3, 32, 32)
    for row, entry in zip(pixels, manifest.entries, strict=True):
        assert np.array_equal(row, load(root / entry.path, 32, 3))


def test_built_once_and_mapped_afterwards(
    root: Path, manifest: DatasetManifest, tmp_path: Path
) -> None:
    steps: list[tuple[int, int]] = []
    folder = tmp_path / "cache"
    first = load_pixels(manifest, root, 32, 1, folder, lambda *step: steps.append(step))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for entry in manifest.entries:
        (root / entry.path).unlink()
    again = load_pixels(manifest, root, 32, 1, folder, lambda *step: steps.append(step))
    assert len(steps) == 4
    assert isinstance(again, np.memmap)
    assert not again.flags.writeable
    assert np.array_equal(first, again)
    assert [file.name for file in folder.iterdir()] == [cache_file(folder, manifest, 32, 1).name]


def test_each_size_and_data_set_has_its_own_file(manifest: DatasetManifest, tmp_path: Path) -> None:
    other = manifest.only([manifest.entries[0].patient])
    files = {
        cache_file(tmp_path, data, size, channels)
        for data in (manifest, other)
        for size in (32, 33)
        for channels in (1, 3)
    }
    assert len(files) == 8


@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_a_damaged_cache_file_is_built_again(
    root: Path, manifest: DatasetManifest, tmp_path: Path, damage: bytes | None
) -> None:
    first = np.array(load_pixels(manifest, root, 32, 1, tmp_path))
    file = cache_file(tmp_path, manifest, 32, 1)
    file.write_bytes(file.read_bytes()[:-7] if damage is None else damage)
    assert np.array_equal(load_pixels(manifest, root, 32, 1, tmp_path), first)


def test_a_file_that_changed_since_registration_is_named(
    root: Path, manifest: DatasetManifest, tmp_path: Path, draw: Draw
) -> None:
    draw(root / "a" / "2.png", 55)
    with pytest.raises(DatasetChanged, match=r"a/2\.png is not the file"):
        load_pixels(manifest, root, 32, 1, tmp_path / "cache")
    (root / "a" / "2.png").unlink()
    with pytest.raises(DatasetChanged, match=r"a/2\.png: does not exist"):
        load_pixels(manifest, root, 32, 1, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_images(root: Path, manifest: DatasetManifest, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no images"):
        load_pixels(manifest.only([]), root, 32, 1, tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def write_and_fail() -> None:
        with replacing(target, "the test") as file:
            file.write(b"new and longer")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert target.read_bytes() == b"old"
    with replacing(target, "the test") as file:
        file.write(b"new")
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_named() -> None:
    def write() -> None:
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    full = full_disk_is_an_error("the images")
    with pytest.raises(StorageFull, match="no disk space left for the images"), full:
        write()
    with pytest.raises(FileNotFoundError), full_disk_is_an_error("the images"):
        Path("/nowhere/at/all").read_bytes()
