import weakref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from primia.learning.config import TrainingConfig
from primia.learning.memory import _BASE, _IMAGE_COPIES, images_together, training_bytes
from primia.learning.models import create_model
from primia.learning.spec import ModelSpec
from primia.learning.training import ImageData, predict

CLASSES = ("normal", "pneumonia")
SGD = TrainingConfig(batch_size=2, optimiser="sgd")


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


def _weights(spec: ModelSpec) -> int:
    module = create_model(spec)
    tensors = [*module.parameters(), *module.buffers()]
    return 4 * sum(tensor.numel() for tensor in tensors)


@pytest.mark.parametrize("architecture", ["small_cnn", "resnet18", "densenet121"])
def test_the_estimate_covers_what_backward_keeps(architecture: str) -> None:
    spec = ModelSpec(architecture=architecture, classes=CLASSES, image_size=32)  # type: ignore[arg-type]
    config = TrainingConfig(batch_size=64)
    images = 4 * _IMAGE_COPIES * 64 * 2 * 32**2
    activations = training_bytes(spec, config) - _BASE - 7 * _weights(spec) - images
    assert _saved_bytes(spec, 64) <= activations <= 4 * _saved_bytes(spec, 64)


class _Peak(TorchDispatchMode):
    """The most bytes of storage that operators have made and nobody has dropped yet."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        if place not in self._known:
            self._known.add(place)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, place, size)

    def _gone(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size


@pytest.mark.parametrize("architecture", ["small_cnn", "resnet18", "densenet121", "unet"])
def test_the_estimate_covers_what_evaluation_holds_at_once(architecture: str) -> None:
    """With batches of two images, so that evaluation is what takes the most."""
    spec = ModelSpec(
        architecture=architecture, classes=CLASSES, image_size=64, width=8  # type: ignore[arg-type]
    )  # fmt: skip
    count = images_together(64, masks=architecture == "unet")
    pixels = np.zeros((count, *spec.input_shape), np.uint8)
    masks = np.zeros((count, 64, 64), np.uint8)
    labels = masks if architecture == "unet" else np.zeros(count, np.int64)
    module = create_model(spec)
    with _Peak() as found:
        predict(module, ImageData.of(pixels, labels, spec))
    estimate = training_bytes(spec, SGD) - _BASE - 6 * _weights(spec)
    assert found.most <= estimate <= 8 * found.most


def test_large_images_are_evaluated_few_at_a_time() -> None:
    """64 of 512 x 512 in VGG-16 would take 4 GB for the first layer alone."""
    assert [images_together(side, masks=False) for side in (64, 256, 512)] == [64, 64, 16]
    assert [images_together(side, masks=True) for side in (64, 256, 512)] == [64, 8, 2]
    spec = ModelSpec(architecture="vgg16", classes=CLASSES, image_size=512)
    first = 4 * 64 * 512**2
    assert 2 * 16 * first < training_bytes(spec, SGD) - _BASE < 80 * first + 6 * _weights(spec)


def test_more_takes_more() -> None:
    spec = ModelSpec(classes=CLASSES, image_size=64)
    small = training_bytes(spec, TrainingConfig(batch_size=32))
    assert training_bytes(spec, TrainingConfig(batch_size=64)) > small
    large = spec.model_copy(update={"image_size": 128})
    assert training_bytes(large, TrainingConfig(batch_size=32)) > small
    sgd = training_bytes(spec, TrainingConfig(batch_size=32, optimiser="sgd"))
    assert sgd < small


def test_private_training_holds_sums_and_on_a_gpu_the_gradients_of_single_images() -> None:
    spec = ModelSpec(classes=CLASSES, image_size=32, norm="group")
    config = TrainingConfig(batch_size=2)
    plain, private = (training_bytes(spec, config, private=each) for each in (False, True))
    weights = _weights(spec)
    assert private - plain == pytest.approx(5 * weights, rel=0.01)
    on_gpu = training_bytes(spec, config, private=True, gpu=True)
    assert on_gpu - private >= 3 * weights
