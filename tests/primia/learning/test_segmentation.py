"""U-Net's training: measures against scikit-learn, the objective, and what moves with an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score

from primia.errors import InvalidInput
from primia.learning.augmentation import augment_both
from primia.learning.config import Augmentation, TrainingConfig
from primia.learning.models import create_model
from primia.learning.objective import dice_loss, recognised
from primia.learning.segmentation import confusion, mean_dice, mean_foreground, overlaps
from primia.learning.spec import ModelSpec
from primia.learning.training import ImageData, evaluate, train_locally

SPEC = ModelSpec(architecture="unet", classes=("background", "disc"), image_size=32, width=8)


def discs(count: int, seed: int = 0) -> ImageData:
    """Bright discs on noise, and where they are."""
    draws = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    centre, radius = draws.integers(8, 24, (count, 2)), draws.integers(4, 8, count)
    masks = np.stack([(y - a) ** 2 + (x - b) ** 2 < r**2
                      for (a, b), r in zip(centre, radius, strict=True)])  # fmt: skip
    pixels = draws.integers(0, 90, masks.shape) + 120 * masks
    return ImageData.of(pixels[:, None].astype(np.uint8), masks.astype(np.uint8), SPEC)


def test_dice_and_iou_are_those_of_scikit_learn_and_add_up_over_sites() -> None:
    draws = np.random.default_rng(1)
    found, truth = draws.integers(0, 4, (2, 6, 16, 16))
    whole = confusion(found, truth, 4)
    parts = confusion(found[:2], truth[:2], 4) + confusion(found[2:], truth[2:], 4)
    assert np.array_equal(whole, parts)
    dice, iou = overlaps(whole)
    f1 = f1_score(truth.ravel(), found.ravel(), average=None)
    assert dice == pytest.approx(f1.tolist())
    assert iou == pytest.approx(jaccard_score(truth.ravel(), found.ravel(), average=None).tolist())
    assert mean_foreground(dice) == pytest.approx(float(f1[1:].mean()))


def test_a_class_that_is_nowhere_has_no_figures() -> None:
    table = confusion(np.zeros((2, 4)), np.zeros((2, 4)), 3)
    assert overlaps(table) == ([1.0, None, None], [1.0, None, None])
    assert mean_foreground(overlaps(table)[0]) is None
    assert mean_dice(table) == 1.0


def test_soft_dice_is_nothing_for_a_sure_right_mask_and_nearly_one_for_a_wrong_one() -> None:
    masks = torch.zeros(2, 16, 16, dtype=torch.long)
    masks[:, 4:12, 4:12] = 1
    right = torch.nn.functional.one_hot(masks, 2).movedim(-1, 1).float() * 100
    assert float(dice_loss(right, masks)) == pytest.approx(0, abs=1e-5)
    assert float(dice_loss(-right, masks)) > 0.99
    assert float(recognised(right, masks)) == 2
    assert float(recognised(-right, masks)) == 0
    by_image = [dice_loss(torch.zeros(1, 2, 16, 16), m[None]) for m in masks]
    both = dice_loss(torch.zeros(2, 2, 16, 16), masks)
    assert float(both) == pytest.approx(float(sum(by_image)) / 2)


@pytest.mark.parametrize("seed", range(4))
def test_soft_dice_is_monais_of_squares_smoothed_by_one(seed: int) -> None:
    from monai.losses import DiceLoss

    draws = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(5, 4, 16, 16, generator=draws)
    masks = torch.randint(0, 3, (5, 16, 16), generator=draws)  # nothing is of the last class
    monai = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, squared_pred=True,
                     smooth_nr=1, smooth_dr=1)  # fmt: skip
    assert float(dice_loss(logits, masks)) == pytest.approx(float(monai(logits, masks[:, None])))


@pytest.mark.parametrize("seed", range(4))
def test_the_dice_of_single_images_is_that_of_scikit_learn(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 4, 8, 8, generator=draws)
    logits[:2, 3] = -9.0  # in two images the last class is neither there nor predicted
    masks = torch.randint(0, 3, (5, 8, 8), generator=draws)
    expected = sum(
        f1_score(mask.ravel(), found.ravel(), labels=[1, 2, 3], average="macro", zero_division=1.0)
        for mask, found in zip(masks.numpy(), logits.argmax(dim=1).numpy(), strict=True)
    )
    assert float(recognised(logits, masks)) == pytest.approx(expected)


@pytest.mark.parametrize("config", [
    Augmentation(),
    Augmentation(rotation=30, scale=0.2, elastic=0.05, mirror=0.5, contrast=0, brightness=0),
])  # fmt: skip
def test_a_mask_moves_with_its_image(config: Augmentation) -> None:
    masks = torch.from_numpy(discs(8).labels).long()
    images = masks[:, None].float()
    generator = torch.Generator().manual_seed(3)
    plain = config.model_copy(update={"contrast": 0.0, "brightness": 0.0})
    moved, moved_masks = augment_both(images, masks, generator, plain, 0.5, 0.25)
    assert moved_masks.dtype == masks.dtype
    assert set(moved_masks.unique().tolist()) <= {0, 1}
    assert not torch.equal(moved_masks, masks)
    assert float(((moved[:, 0] > 0.5) != (moved_masks == 1)).float().mean()) < 0.02


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_unet_learns_where_the_discs_are(norm: str) -> None:
    module = create_model(SPEC.model_copy(update={"norm": norm}))
    data, held = discs(24), discs(12, seed=1)
    before = evaluate(module, held)
    config = TrainingConfig(epochs=6, batch_size=6, learning_rate=3e-3)
    done = train_locally(module, data, config, seed=1)
    after = evaluate(module, held)
    assert done.samples == 24 * 6
    assert after.samples == 12
    assert after.accuracy > max(0.7, before.accuracy + 0.2)
    assert after.loss < before.loss
    table = np.array(after.confusion)
    assert table.sum() == 12 * 32 * 32
    assert after.accuracy == pytest.approx(overlaps(table)[0][1])


def test_a_unet_trains_privately_with_groups() -> None:
    from primia.learning.accounting import DpSgd, Release
    from primia.learning.private import train_privately

    module = create_model(SPEC.model_copy(update={"norm": "group"}))
    config = TrainingConfig(batch_size=4, learning_rate=1e-3)
    release = Release(noise_multiplier=1.0, sample_rate=0.5, steps=2)
    before = [p.detach().clone() for p in module.parameters()]
    done = train_privately(module, discs(8), config, DpSgd(epsilon=8), release, seed=1)
    assert done.batches == 2
    assert any(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_sizes_that_do_not_halve_and_mixed_images_are_refused() -> None:
    with pytest.raises(InvalidInput, match="multiples of 16"):
        ModelSpec.parse({"architecture": "unet", "classes": ["a", "b"], "image_size": 40})
    with pytest.raises(InvalidInput, match="one class"):
        TrainingConfig(mixup=0.2).check_masks()
