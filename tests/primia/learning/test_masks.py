"""Data sets of images with masks: what is taken, and what is said of each file that is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from primia.errors import InvalidInput
from primia.learning import cache, masks
from primia.learning.cache import DatasetChanged
from primia.learning.manifest import DatasetManifest
from primia.learning.synthetic import draw_masks

SIDE = 32


def write(root: Path, name: str, mask: np.ndarray | None, side: int = SIDE) -> None:
    """images/NAME.png, each another one, and masks/NAME.png."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name) + sum(name.encode())).integers(0, 256, (side, side))
    Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"{name}.png")
    if mask is not None:
        Image.fromarray(mask.astype(np.uint8)).save(root / "masks" / f"{name}.png")


def square(value: int, side: int = SIDE) -> np.ndarray:
    mask = np.zeros((side, side))
    mask[8:20, 8:20] = value
    return mask


def found(root: Path) -> masks.Inspection:
    return masks.inspect(masks.scan_folder(root))


def test_images_and_masks_become_a_manifest_that_reads_back(tmp_path: Path):
    write(tmp_path, "person1_a", square(1))
    write(tmp_path, "person2_b", square(2))
    inspection = found(tmp_path)
    assert inspection.problems == ()
    manifest = inspection.manifest
    assert manifest is not None
    assert manifest.segments
    assert manifest.counts == {"0": 0, "1": 1, "2": 1}
    assert manifest.patients == 2
    assert DatasetManifest.parse(manifest.to_json()) == manifest


def spoil_missing(root: Path) -> None:
    (root / "masks" / "bad.png").unlink()


def spoil_size(root: Path) -> None:
    Image.fromarray(square(1, 40).astype(np.uint8)).save(root / "masks" / "bad.png")


def spoil_values(root: Path) -> None:
    Image.fromarray(square(77).astype(np.uint8)).save(root / "masks" / "bad.png")


def spoil_colour(root: Path) -> None:
    Image.new("RGB", (SIDE, SIDE)).save(root / "masks" / "bad.png")


def spoil_format(root: Path) -> None:
    Image.fromarray(square(1).astype(np.uint8)).save(root / "masks" / "bad.png", "JPEG")


def spoil_bytes(root: Path) -> None:
    file = root / "masks" / "bad.png"
    file.write_bytes(file.read_bytes()[:60])


def spoil_image(root: Path) -> None:
    (root / "images" / "bad.png").write_bytes(b"no image")


def spoil_link(root: Path) -> None:
    (root / "masks" / "bad.png").unlink()
    outside = root.parent / "outside.png"
    Image.fromarray(square(1).astype(np.uint8)).save(outside)
    (root / "masks" / "bad.png").symlink_to(outside)


@pytest.mark.parametrize(
    ("spoil", "path", "reason"),
    [
        (spoil_missing, "images/bad.png", "has no mask: there is no masks/bad.png"),
        (spoil_size, "masks/bad.png", "is 40 x 40 pixels, and its image 32 x 32"),
        (spoil_values, "masks/bad.png", "has the value 77"),
        (spoil_colour, "masks/bad.png", "samples of the kind RGB"),
        (spoil_format, "masks/bad.png", "no PNG file"),
        (spoil_bytes, "masks/bad.png", "no PNG file that can be read"),
        (spoil_image, "images/bad.png", "not an image"),
        (spoil_link, "masks/bad.png", "leads out of the data set's folder"),
    ],
)
def test_a_bad_file_is_named_with_its_reason(
    tmp_path: Path, spoil: Callable[[Path], None], path: str, reason: str
):
    root = tmp_path / "set"
    write(root, "good", square(1))
    write(root, "bad", square(1))
    spoil(root)
    inspection = found(root)
    (problem,) = inspection.errors
    assert problem.path == path
    assert reason in problem.reason
    assert inspection.manifest is not None
    assert [entry.path for entry in inspection.manifest.entries] == ["images/good.png"]


def test_an_empty_data_set_and_one_of_background_alone_are_errors(tmp_path: Path):
    for folder in ("images", "masks"):
        (tmp_path / "empty" / folder).mkdir(parents=True)
    (problem,) = found(tmp_path / "empty").errors
    assert "no image with a mask" in problem.reason
    write(tmp_path / "dark", "a", square(0))
    (problem,) = found(tmp_path / "dark").errors
    assert "background alone" in problem.reason


def test_a_folder_without_masks_is_refused(tmp_path: Path):
    (tmp_path / "images").mkdir()
    with pytest.raises(InvalidInput, match="no folder 'masks'"):
        masks.scan_folder(tmp_path)


def test_two_images_cannot_share_a_mask(tmp_path: Path):
    write(tmp_path, "a", square(1))
    Image.fromarray(np.arange(SIDE**2, dtype=np.uint8).reshape(SIDE, SIDE)).save(
        tmp_path / "images" / "a.jpeg"
    )
    (problem,) = found(tmp_path).errors
    assert "has the mask of images/a.jpeg" in problem.reason


def test_255_and_class_numbers_do_not_go_together(tmp_path: Path):
    write(tmp_path, "a", square(255))
    write(tmp_path, "b", square(2))
    assert any("value 255" in problem.reason for problem in found(tmp_path).errors)


def test_masks_are_resized_to_the_nearest_class_and_255_is_class_1(tmp_path: Path):
    write(tmp_path, "a", square(255, 64), side=64)
    write(tmp_path, "b", square(1, 64), side=64)
    manifest = found(tmp_path).manifest
    assert manifest is not None
    store = tmp_path / "cache"
    store.mkdir()
    loaded = cache.load_masks(manifest, tmp_path, 32, store)
    assert loaded.shape == (2, 32, 32)
    wanted = np.zeros((32, 32))
    wanted[4:10, 4:10] = 1
    assert np.array_equal(loaded[0], wanted)
    assert np.array_equal(loaded[1], wanted)


def test_a_mask_that_changed_since_its_registration_is_not_used(tmp_path: Path):
    write(tmp_path, "a", square(1))
    manifest = found(tmp_path).manifest
    assert manifest is not None
    write(tmp_path, "a", square(2))
    with pytest.raises(DatasetChanged, match=r"masks/a\.png is not the file"):
        cache.load_masks(manifest, tmp_path, 32, tmp_path)


def test_drawn_lungs_are_dark_beside_the_rest_and_registered_whole(tmp_path: Path):
    assert draw_masks(tmp_path, 3, 3, 1, 64) == 9
    inspection = found(tmp_path)
    assert inspection.problems == ()
    assert inspection.manifest is not None
    assert len(inspection.manifest) == 9
    for entry in inspection.manifest.entries:
        image = np.asarray(Image.open(tmp_path / entry.path), dtype=float)
        mask = np.asarray(Image.open(tmp_path / entry.mask))
        assert 0.05 < mask.mean() < 0.5
        if "IM-" in entry.path:  # healthy
            assert image[mask == 1].mean() < image[16:48, 16:48][mask[16:48, 16:48] == 0].mean()
