"""Where warped images take their pixels from.

Images whose pixels are their own coordinates show it: what they become is the map itself. SciPy,
told the map, must make the same of any picture.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from primia.learning.augmentation import augment, augment_both
from primia.learning.config import NO_AUGMENTATION, Augmentation

SIDE = 40
COUNT = 60
MIDDLE = (SIDE - 1) / 2
STRENGTHS = {
    "mirror": 0.5,
    "flip": 0.5,
    "translation": 0.2,
    "rotation": 30.0,
    "scale": 0.3,
    "shear": 20.0,
    "crop": 0.5,
    "elastic": 0.05,
    "grid": 0.3,
    "optical": 0.3,
}
BY_GRID = {"rotation": 1e-9}  # as good as nothing, but no longer whole pixels
Map = NDArray[np.float64]


def _only(**strengths: float) -> Augmentation:
    return NO_AUGMENTATION.model_copy(update=strengths)


def _generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _map(config: Augmentation, count: int = COUNT, seed: int = 1) -> Map:
    """(N, 2, S, S): the row and the column that each pixel comes from."""
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    places = torch.from_numpy(np.stack([rows, columns])).expand(count, 2, SIDE, SIDE)
    return augment(places.contiguous(), _generator(seed), config).numpy().astype(np.float64)


def _pictures(count: int = COUNT) -> torch.Tensor:
    draws = np.random.default_rng(5)
    return torch.from_numpy(draws.normal(size=(count, 1, SIDE, SIDE)).astype(np.float32))


def _fit(taken: Map) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of one image: matrix and shift of the affine map about the middle, (x, y); the map is that
    exactly, wherever it lies within the image."""
    out = np.stack(np.mgrid[:SIDE, :SIDE][::-1], axis=-1).reshape(-1, 2) - MIDDLE
    found = taken[::-1].reshape(2, -1).T - MIDDLE
    inner = (np.abs(found) < MIDDLE - 0.01).all(axis=1)
    given = np.column_stack([out, np.ones(len(out))])[inner]
    solved, *_ = np.linalg.lstsq(given, found[inner], rcond=None)
    assert np.allclose(given @ solved, found[inner], atol=1e-3)
    return solved[:2].T, solved[2]


def _fits(config: Augmentation) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    fits = [_fit(each) for each in _map(config)]
    return np.array([matrix for matrix, _ in fits]), np.array([shift for _, shift in fits])


def _spread_over(values: NDArray[np.float64], reach: float) -> bool:
    """Within the reach both ways, and making use of it."""
    bound = reach * (1 + 1e-3)
    return bool(-bound <= values.min() < -0.7 * reach and 0.7 * reach < values.max() <= bound)


@pytest.mark.parametrize("name", STRENGTHS)
def test_pictures_are_sampled_as_scipy_does_it(name: str) -> None:
    config = _only(**{name: STRENGTHS[name]})
    pictures = _pictures()
    varied = augment(pictures, _generator(), config)
    for picture, taken, found in zip(pictures, _map(config), varied, strict=True):
        expected = map_coordinates(picture[0].numpy(), taken, order=1, mode="nearest")
        assert np.allclose(found[0], expected, atol=1e-3)


@pytest.mark.parametrize("name", STRENGTHS)
def test_masks_go_where_their_images_go_by_the_nearest_pixel(name: str) -> None:
    config = _only(**{name: STRENGTHS[name]})
    masks = torch.from_numpy(np.random.default_rng(2).choice([0, 3, 7], (COUNT, SIDE, SIDE)))
    images, moved = augment_both(_pictures(), masks, _generator(), config, 0.5, 0.25)
    assert torch.equal(images, augment(_pictures(), _generator(), config))
    assert not torch.equal(moved, masks)
    assert moved.dtype == masks.dtype
    assert set(moved.unique().tolist()) == {0, 3, 7}
    for mask, taken, found in zip(masks, _map(config), moved, strict=True):
        expected = mask.numpy()[tuple(np.rint(taken).astype(int))]
        halfway = (np.abs(taken % 1 - 0.5) < 1e-3).any(axis=0)  # either is the nearest
        assert ((found.numpy() == expected) | halfway).all()
        assert halfway.mean() < 0.1


@pytest.mark.parametrize("name", ["elastic", "grid", "optical"])
def test_the_weakest_distortion_is_next_to_none(name: str) -> None:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    assert np.allclose(_map(_only(**{name: 1e-7})), np.stack([rows, columns]), atol=1e-3)


def test_a_rotation_is_about_the_middle_and_by_no_more_than_its_angle() -> None:
    matrices, shifts = _fits(_only(rotation=30.0))
    assert np.allclose(shifts, 0, atol=1e-3)
    assert np.allclose(matrices @ matrices.transpose(0, 2, 1), np.eye(2), atol=1e-4)
    assert np.allclose(np.linalg.det(matrices), 1, atol=1e-4)
    assert _spread_over(np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0])), 30)


def test_a_scale_keeps_the_middle_and_the_proportions() -> None:
    matrices, shifts = _fits(_only(scale=0.3))
    assert np.allclose(shifts, 0, atol=1e-3)
    assert np.allclose(matrices, matrices[:, :1, :1] * np.eye(2), atol=1e-4)
    assert _spread_over(matrices[:, 0, 0] - 1, 0.3)


def test_a_shear_moves_along_rows_by_no_more_than_its_angle() -> None:
    matrices, shifts = _fits(_only(shear=20.0))
    assert np.allclose(shifts, 0, atol=1e-3)
    assert np.allclose(matrices[:, :, 0], [1, 0], atol=1e-4)
    assert np.allclose(matrices[:, 1, 1], 1, atol=1e-4)
    assert _spread_over(np.degrees(np.arctan(matrices[:, 0, 1])), 20)


def test_a_crop_is_a_square_anywhere_within_the_image() -> None:
    matrices, shifts = _fits(_only(crop=0.5))
    side = matrices[:, 0, 0]
    assert np.allclose(matrices, side[:, None, None] * np.eye(2), atol=1e-4)
    assert 0.5 - 1e-4 <= side.min() < 0.6
    assert 0.9 < side.max() <= 1
    room = (1 - side)[:, None] * SIDE / 2
    assert (np.abs(shifts) <= room + 1e-2).all()
    assert _spread_over(shifts[side < 0.9] / room[side < 0.9], 1)


def test_crop_and_scale_together_move_by_what_is_cut_away() -> None:
    matrices, shifts = _fits(_only(crop=0.5, scale=0.3))
    assert (np.abs(shifts) <= 0.5 * 1.3 * SIDE / 2).all()
    assert matrices[:, 0, 0].min() >= 0.5 * 0.7 - 1e-3
    assert matrices[:, 0, 0].max() <= 1.3 + 1e-3


@pytest.mark.parametrize("more", [{}, BY_GRID])
def test_a_translation_is_by_no_more_than_its_share_of_the_side(more: dict[str, float]) -> None:
    matrices, shifts = _fits(_only(translation=0.2, **more))
    assert np.allclose(matrices, np.eye(2), atol=1e-4)
    for axis in (0, 1):
        assert _spread_over(shifts[:, axis], 0.2 * SIDE)
    assert np.abs(np.corrcoef(shifts.T)[0, 1]) < 0.5
    if not more:
        assert np.allclose(shifts, shifts.round(), atol=1e-3)


@pytest.mark.parametrize("more", [{}, BY_GRID])
@pytest.mark.parametrize(("name", "axis"), [("mirror", 0), ("flip", 1)])
def test_mirrored_and_flipped_images_are_turned_about_one_axis(
    name: str, axis: int, more: dict[str, float]
) -> None:
    matrices, shifts = _fits(_only(**{name: 0.5}, **more))
    turned = np.eye(2)
    turned[axis, axis] = -1
    assert np.allclose(shifts, 0, atol=1e-3)
    which = np.array([np.allclose(each, turned, atol=1e-4) for each in matrices])
    assert np.allclose(matrices[~which], np.eye(2), atol=1e-4)
    assert 10 <= which.sum() <= COUNT - 10


def _displacements(config: Augmentation, count: int = COUNT) -> Map:
    """(N, 2, S, S) pixels, nan where the map leaves the image."""
    taken = _map(config, count)
    moved = taken - np.stack(np.mgrid[:SIDE, :SIDE])
    outside = ((taken <= 0.01) | (taken >= SIDE - 1.01)).any(axis=1, keepdims=True)
    return np.where(outside, np.nan, moved)


def test_an_optical_distortion_is_radial_with_one_coefficient_an_image() -> None:
    moved = _displacements(_only(optical=0.3))
    out = (np.stack(np.mgrid[:SIDE, :SIDE]) + 0.5) * 2 / SIDE - 1  # (2, S, S) in -1 to 1
    cube = out * (out**2).sum(axis=0)
    strengths = []
    for each in moved * 2 / SIDE:
        known = ~np.isnan(each)
        strength = (each[known] * cube[known]).sum() / (cube[known] ** 2).sum()
        assert np.allclose(each[known], strength * cube[known], atol=1e-3)
        strengths.append(strength)
    assert _spread_over(np.array(strengths), 0.3)


@pytest.mark.parametrize(("name", "reach"), [("elastic", 0.05 * SIDE), ("grid", 0.3 * SIDE / 5)])
def test_distortions_are_smooth_and_of_no_more_than_their_strength(name: str, reach: float) -> None:
    moved = _displacements(_only(**{name: STRENGTHS[name]}), count=300)
    assert 0.9 * reach < np.nanmax(np.abs(moved)) <= reach + 1e-3
    assert 0.1 * reach < np.nanmean(np.abs(moved)) < 0.7 * reach
    for axis in (2, 3):
        assert np.nanmax(np.abs(np.diff(moved, axis=axis))) < 0.8 * reach
    still = np.nanstd(moved, axis=(2, 3))
    assert (still > 0.1 * reach).all()  # not the whole image by the same


def test_the_corners_of_the_grids_cells_move_by_themselves() -> None:
    """Five cells a side: two points that far apart have nothing in common."""
    moved = _displacements(_only(grid=0.3), count=400)
    first, second = moved[:, 0, SIDE // 5, SIDE // 5], moved[:, 0, SIDE // 5, 2 * SIDE // 5]
    near = moved[:, 0, SIDE // 5, SIDE // 5 + 1]
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.2
    assert np.corrcoef(first, near)[0, 1] > 0.9
