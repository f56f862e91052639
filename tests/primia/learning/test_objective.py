import numpy as np
import torch
from scipy.stats import beta, kstest
from torch.nn import functional

from primia.learning.config import TrainingConfig
from primia.learning.objective import Batch, Objective, mix

CPU = torch.device("cpu")
LOGITS = torch.tensor([[2.0, -1.0], [0.5, 0.0], [-1.0, 3.0]])
LABELS = torch.tensor([0, 1, 1])


def test_weights_and_smoothing_are_torchs() -> None:
    config = TrainingConfig(class_weights=(1.0, 4.0), label_smoothing=0.2)
    expected = functional.cross_entropy(
        LOGITS, LABELS, weight=torch.tensor([1.0, 4.0]), label_smoothing=0.2
    )
    assert torch.equal(Objective(config, CPU)(LOGITS, Batch(LOGITS, LABELS, LABELS)), expected)


def test_the_loss_of_a_blend_is_the_blend_of_the_losses() -> None:
    objective = Objective(TrainingConfig(), CPU)
    others = LABELS.flip(0)
    both = [objective(LOGITS, Batch(LOGITS, each, each)) for each in (LABELS, others)]
    found = objective(LOGITS, Batch(LOGITS, LABELS, others, 0.3))
    assert torch.allclose(found, 0.3 * both[0] + 0.7 * both[1])


def test_mixup_blends_images_and_labels_alike() -> None:
    images = torch.eye(6).reshape(6, 1, 2, 3)
    labels = torch.arange(6)
    batch = mix(images, labels, 0.4, torch.Generator().manual_seed(3))
    expected = batch.share * images[labels] + (1 - batch.share) * images[batch.others]
    assert torch.allclose(batch.images, expected)
    assert sorted(batch.others.tolist()) == labels.tolist()


def test_shares_follow_the_beta_distribution() -> None:
    generator = torch.Generator().manual_seed(1)
    image, label = torch.zeros(2, 1, 1, 1), torch.zeros(2, dtype=torch.long)
    shares = np.array([mix(image, label, 0.4, generator).share for _ in range(2000)])
    assert kstest(shares, beta(0.4, 0.4).cdf).pvalue > 1e-3
