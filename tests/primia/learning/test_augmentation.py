import torch

from primia.learning.augmentation import BRIGHTNESS, CONTRAST, augment


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
