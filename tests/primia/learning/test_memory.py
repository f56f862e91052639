import pytest
import torch

from primia.learning.config import TrainingConfig
from primia.learning.memory import _BASE, training_bytes
from primia.learning.models import create_model
from primia.learning.spec import ModelSpec

CLASSES = ("normal", "pneumonia")


def _saved_bytes(spec: ModelSpec, batch: int) -> int:
    """What torch really keeps for the backward pass, weights not counted."""
    module = create_model(spec)
    own = {parameter.data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = module(torch.zeros(batch, *spec.input_shape))  # the graph lives until the end
    assert out.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("architecture", ["small_cnn", "resnet18", "densenet121"])
def test_the_estimate_covers_what_backward_keeps(architecture: str) -> None:
    spec = ModelSpec(architecture=architecture, classes=CLASSES, image_size=32)  # type: ignore[arg-type]
    config = TrainingConfig(batch_size=16)
    module = create_model(spec)
    weights = 4 * sum(parameter.numel() for parameter in module.parameters())
    activations = training_bytes(spec, config) - _BASE - 7 * weights
    assert _saved_bytes(spec, 16) <= activations <= 4 * _saved_bytes(spec, 16)


def test_more_takes_more() -> None:
    spec = ModelSpec(classes=CLASSES, image_size=64)
    small = training_bytes(spec, TrainingConfig(batch_size=8))
    assert training_bytes(spec, TrainingConfig(batch_size=64)) > small
    large = spec.model_copy(update={"image_size": 128})
    assert training_bytes(large, TrainingConfig(batch_size=8)) > small
    sgd = training_bytes(spec, TrainingConfig(batch_size=8, optimiser="sgd"))
    assert sgd < small
