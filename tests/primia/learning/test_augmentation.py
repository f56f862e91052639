import pytest
import torch

from primia.errors import InvalidInput
from primia.learning.augmentation import augment
from primia.learning.config import NO_AUGMENTATION, Augmentation
from primia.learning.equalisation import clahe

CONTRAST, BRIGHTNESS = Augmentation().contrast, Augmentation().brightness


def _images(count: int, size: int) -> torch.Tensor:
    return torch.linspace(-2, 2, count * size * size).reshape(count, 1, size, size)


def _generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shape_and_repeatability() -> None:
    images = _images(8, 32)
    varied = augment(images, _generator())
    assert varied.shape == images.shape
    assert varied.dtype == torch.float32
    assert torch.equal(varied, augment(images, _generator()))
    assert not torch.equal(varied, augment(images, _generator(2)))


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    augment(_images(4, 16), _generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_about_half_of_the_images_are_mirrored_and_none_is_turned() -> None:
    ramp = torch.linspace(-1, 1, 64).expand(200, 1, 64, 64)  # grows from left to right
    varied = augment(ramp, _generator())
    rightwards = (varied[..., -8:] > varied[..., :8]).all(dim=-1).all(dim=-1).flatten()
    assert 70 <= int(rightwards.sum()) <= 130
    assert torch.allclose(varied[:, :, 1:], varied[:, :, :-1])  # rows stay rows


def test_moves_are_at_most_a_sixteenth_of_the_side() -> None:
    spot = torch.zeros(300, 1, 32, 32)
    spot[:, :, 16, 16] = 100
    found = augment(spot, _generator()).flatten(1).argmax(dim=1)
    rows, columns = found // 32, found % 32
    assert set(rows.tolist()) == {14, 15, 16, 17, 18}
    # mirrored, column 16 becomes 15
    assert set(columns.tolist()) == {13, 14, 15, 16, 17, 18}


def test_contrast_and_brightness_stay_in_their_bounds() -> None:
    flat = torch.ones(500, 1, 16, 16)
    values = augment(flat, _generator())[:, 0, 0, 0]
    assert float(values.max()) <= 1 + CONTRAST + BRIGHTNESS
    assert float(values.min()) >= 1 - CONTRAST - BRIGHTNESS
    assert float(values.max() - values.min()) > CONTRAST + BRIGHTNESS


STRENGTHS = {
    "mirror": 1.0,
    "flip": 1.0,
    "translation": 0.2,
    "rotation": 20.0,
    "scale": 0.2,
    "shear": 10.0,
    "crop": 0.4,
    "contrast": 0.3,
    "brightness": 0.3,
    "gamma": 0.4,
    "blur": 1.0,
    "noise": 0.1,
    "elastic": 0.05,
    "grid": 0.3,
    "optical": 0.3,
    "clahe": 1.0,
    "equalise": 1.0,
    "solarise": 1.0,
    "cutout": 1.0,
}


def _pictures(count: int = 4, channels: int = 1, size: int = 32) -> torch.Tensor:
    """Smooth blobs, none symmetric, normalised from grey values in 0 to 1."""
    y, x = torch.meshgrid(torch.linspace(0, 3, size), torch.linspace(0, 2, size), indexing="ij")
    grey = 0.5 + 0.45 * torch.sin(x * x + y) * torch.cos(y)
    return ((grey - 0.5) / 0.25).expand(count, channels, size, size).contiguous()


def test_the_list_is_whole() -> None:
    assert set(STRENGTHS) == set(Augmentation.model_fields)


@pytest.mark.parametrize("name", STRENGTHS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_variation_varies_and_is_repeatable(name: str, channels: int) -> None:
    config = NO_AUGMENTATION.model_copy(update={name: STRENGTHS[name]})
    images = _pictures(channels=channels)
    varied = augment(images, _generator(), config, (0.5,) * channels, (0.25,) * channels)
    assert varied.shape == images.shape
    assert torch.isfinite(varied).all()
    assert torch.equal(varied, augment(images, _generator(), config))
    changed = (varied - images).abs().flatten(1).amax(dim=1)
    assert (changed > 1e-3).all()
    if name not in ("mirror", "flip", "clahe", "equalise", "solarise"):  # those draw nothing more
        assert not torch.allclose(varied[0], varied[1])


def test_no_augmentation_is_the_identity() -> None:
    images = _pictures()
    assert torch.equal(augment(images, _generator(), NO_AUGMENTATION), images)


def test_a_flipped_image_is_the_same_by_pixels_and_by_a_grid() -> None:
    images = _pictures()
    whole = NO_AUGMENTATION.model_copy(update={"mirror": 1.0, "flip": 1.0})
    by_grid = whole.model_copy(update={"rotation": 1e-6})
    expected = images.flip(-1).flip(-2)
    assert torch.equal(augment(images, _generator(), whole), expected)
    assert torch.allclose(augment(images, _generator(), by_grid), expected, atol=1e-4)


def test_a_rotation_keeps_the_middle_and_stays_within_its_angle() -> None:
    spot = torch.zeros(200, 1, 33, 33)
    spot[:, :, 15:18, 28:31] = 1.0  # 13 pixels to the right of the middle
    config = NO_AUGMENTATION.model_copy(update={"rotation": 30.0})
    found = augment(spot, _generator(), config).flatten(1).argmax(dim=1)
    rows, columns = (found // 33 - 16).float(), (found % 33 - 16).float()
    angles = torch.rad2deg(torch.atan2(rows, columns))
    assert angles.abs().max() <= 36  # of the spot's corner
    assert angles.max() > 20
    assert angles.min() < -20


def test_a_crop_enlarges() -> None:
    config = NO_AUGMENTATION.model_copy(update={"crop": 0.5})
    ramp = torch.linspace(-1, 1, 64).expand(100, 1, 64, 64)
    varied = augment(ramp, _generator(), config)
    span = varied[:, 0, 32, -1] - varied[:, 0, 32, 0]
    assert span.max() <= 2
    assert 0.9 < span.min() < 1.2  # half of the side is left at the least


def test_adaptive_equalisation_spreads_a_narrow_range() -> None:
    images = 0.45 + 0.1 * (_pictures(size=64) * 0.25 + 0.5)
    spread = clahe(images)
    assert spread.shape == images.shape
    assert 0 <= float(spread.min()) <= float(spread.max()) <= 1 + 1e-5
    assert spread.std() > 2 * images.std()
    flat = torch.full((1, 1, 30, 30), 0.3)  # a side that no tile divides
    assert clahe(flat).std() < 1e-6


def test_impossible_strengths_are_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="rotation"):
        Augmentation.parse({"rotation": 200})
    with pytest.raises(InvalidInput, match="warp"):
        Augmentation.parse({"warp": 1})
