import pytest
import torch
from torch import nn
from torch.nn import functional

from primia.errors import InvalidInput
from primia.evaluation.attacks.labels import MAX_IMAGES, infer_counts, infer_label, overlap


def biases(labels: list[int], classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """(gradient of the last layer's biases, mean predicted probabilities) of a random layer."""
    generator = torch.Generator().manual_seed(len(labels))
    layer = nn.Linear(7, classes)
    with torch.no_grad():
        layer.weight.normal_(generator=generator)
        layer.bias.zero_()
    logits = layer(torch.randn(len(labels), 7, generator=generator))
    loss = functional.cross_entropy(logits, torch.tensor(labels))
    (found,) = torch.autograd.grad(loss, [layer.bias])
    return found, logits.detach().softmax(dim=1).mean(dim=0)


@pytest.mark.parametrize("label", range(5))
def test_the_class_of_one_image_is_told_exactly(label: int) -> None:
    found, _ = biases([label])
    assert infer_label(found) == label
    assert infer_label(found * 1e-6) == label  # whatever the scale


@pytest.mark.parametrize("labels", [[0, 0, 0], [4, 1, 1, 3, 3, 3], [2] * 9])
def test_the_counts_of_a_batch_follow_from_the_true_probabilities(labels: list[int]) -> None:
    found, chances = biases(labels)
    assert infer_counts(found, chances, len(labels)) == tuple(labels.count(k) for k in range(5))


def test_counts_always_add_up_however_wrong_the_probabilities() -> None:
    found, _ = biases([0, 1, 2, 2])
    for chances in (torch.zeros(5), torch.ones(5) / 5, torch.eye(5)[3]):
        assert sum(infer_counts(found, chances, 4)) == 4
    nothing = infer_counts(torch.ones(3), torch.zeros(3), 7)
    assert sum(nothing) == 7


def test_overlap_is_the_share_that_was_told_rightly() -> None:
    assert overlap((2, 1, 1), (2, 1, 1)) == 1
    assert overlap((4, 0, 0), (2, 1, 1)) == 0.5
    with pytest.raises(InvalidInput, match="counts"):
        overlap((1, 0), (1, 1))


def test_bad_input_is_refused() -> None:
    with pytest.raises(InvalidInput, match="one dimension"):
        infer_label(torch.zeros(2, 2))
    with pytest.raises(InvalidInput, match="not finite"):
        infer_label(torch.tensor([0.0, float("nan")]))
    with pytest.raises(InvalidInput, match="probabilities"):
        infer_counts(torch.zeros(3), torch.zeros(2), 1)
    for images in (0, MAX_IMAGES + 1):
        with pytest.raises(InvalidInput, match="images"):
            infer_counts(torch.zeros(3), torch.zeros(3), images)
