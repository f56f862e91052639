"""The architectures of the catalogue, built from plain torch layers (torch.fx traces them).

torchvision's models keep their names of tensors, so that ImageNet's weight files fit; for grey
images their first convolution has one input channel. Everything here may be built on the meta
device: no weight is drawn.
"""

from __future__ import annotations

import math

from torch import nn

from primia.errors import InvalidInput
from primia.learning.programs.network import Network
from primia.learning.spec import ModelSpec
from primia.learning.unet import UNet
from primia.learning.vision import torchvision_models

_FIRST_CONVOLUTION = {
    "resnet18": "conv1",
    "resnet34": "conv1",
    "resnet50": "conv1",
    "vgg16": "features.0",
    "vgg16_bn": "features.0",
    "densenet121": "features.conv0",
}
# The last fully connected layer of each: one output a class.
HEADS = {
    "resnet18": "fc",
    "resnet34": "fc",
    "resnet50": "fc",
    "vgg16": "classifier.6",
    "vgg16_bn": "classifier.6",
    "densenet121": "classifier",
}
_GROUPS = 32  # Wu and He (2018)


def first_convolution(architecture: str) -> str | None:
    """The path of the layer that reads the image, in torchvision's models."""
    return _FIRST_CONVOLUTION.get(architecture)


def build(spec: ModelSpec) -> nn.Module:
    """The module with weights as the libraries leave them.

    Input (N, channels, image_size, image_size), output (N, classes); of a U-Net
    (N, classes, image_size, image_size).
    """
    if spec.layout is not None:
        raise InvalidInput(
            "The model's code is at the sites alone: it can be neither run nor compiled here."
        )
    if spec.program is not None:
        return Network(spec.program, spec.input_shape)
    if spec.architecture == "small_cnn":
        module = _small_cnn(spec)
    elif spec.architecture == "lenet":
        module = _lenet(spec)
    elif spec.architecture == "unet":
        module = UNet(spec.channels, len(spec.classes), spec.width)
    elif spec.architecture == "mobilenet":
        module = _mobilenet(spec)
    else:
        module = _from_torchvision(spec)
    if spec.norm == "group":
        _norm_by_groups(module)
    return module


def _from_torchvision(spec: ModelSpec) -> nn.Module:
    make = getattr(torchvision_models(), spec.architecture)
    module: nn.Module = make(weights=None, num_classes=len(spec.classes))
    path = _FIRST_CONVOLUTION[spec.architecture]
    first = module.get_submodule(path)
    assert isinstance(first, nn.Conv2d)
    if spec.channels != first.in_channels:
        _replace(module, path, _with_input_channels(first, spec.channels))
    return module


def _with_input_channels(layer: nn.Conv2d, channels: int) -> nn.Conv2d:
    return nn.Conv2d(
        channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]  # a pair, as Conv2d made it
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        bias=layer.bias is not None,
    )


def _replace(module: nn.Module, path: str, part: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, part)


def _norm_by_groups(module: nn.Module) -> None:
    """GroupNorm in the place of every BatchNorm: no statistics of other images enter."""
    paths = [path for path, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)]
    for path in paths:
        channels = module.get_submodule(path).num_features
        assert isinstance(channels, int)
        _replace(module, path, nn.GroupNorm(math.gcd(_GROUPS, channels), channels))


def _convolution(given: int, out: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """3 x 3 with padding, BatchNorm, ReLU."""
    return [
        nn.Conv2d(given, out, 3, stride, padding=1, groups=groups, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
    ]


def _small_cnn(spec: ModelSpec) -> nn.Module:
    """Three times convolution, BatchNorm, ReLU, pooling; then global average and one layer."""
    layers: list[nn.Module] = []
    width: int = spec.channels
    for wider in (16, 32, 64):
        layers += [*_convolution(width, wider), nn.MaxPool2d(2)]
        width = wider
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, len(spec.classes))]
    return nn.Sequential(*layers, *head)


def _lenet(spec: ModelSpec) -> nn.Module:
    """LeNet-5 (LeCun et al., 1998) with ReLU and maximum pooling, for any size."""
    side = ((spec.image_size - 4) // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(spec.channels, 6, 5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * side * side, 120),
        nn.ReLU(inplace=True),
        nn.Linear(120, 84),
        nn.ReLU(inplace=True),
        nn.Linear(84, len(spec.classes)),
    )


# Howard et al. (2017), table 1: output channels and stride of each depthwise separable block.
_BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    *((512, 1),) * 5,
    (1024, 2), (1024, 1),
)  # fmt: skip


def _mobilenet(spec: ModelSpec) -> nn.Module:
    """MobileNet: depthwise 3 x 3, then pointwise 1 x 1, each with BatchNorm and ReLU."""
    layers, width = _convolution(spec.channels, 32, 2), 32
    for out, stride in _BLOCKS:
        layers += _convolution(width, width, stride, groups=width)
        pointwise = nn.Conv2d(width, out, 1, bias=False)
        layers += [pointwise, nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
        width = out
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, len(spec.classes))]
    return nn.Sequential(*layers, *head)
