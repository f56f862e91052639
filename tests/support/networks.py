"""Small torch networks of every kind the compiler takes, with weights that depend on a seed."""

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """ResNet's basic block (He et al., 2016)."""

    def __init__(self, given, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(given, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity()
        if stride != 1 or given != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(given, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return self.relu(y)


class LeNet(nn.Module):
    """Functional style: relu, pooling and view as calls, no BatchNorm."""

    def __init__(self, channels=1, classes=3, size=28):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * ((size // 2 - 4) // 2) ** 2, 60)
        self.fc2 = nn.Linear(60, classes)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.avg_pool2d(torch.relu(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        return self.fc2(functional.dropout(self.fc1(x).relu(), training=self.training))


def residual(channels=3, classes=3, width=8):
    return nn.Sequential(
        nn.Conv2d(channels, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        Block(width, width, 1),
        Block(width, 2 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes),
    )


def vgg(channels=3, classes=3, norm=True, size=32):
    layers, given = [], channels
    for width, pooled in ((8, True), (12, False), (12, True), (16, True)):
        layers += [nn.Conv2d(given, width, 3, padding=1)]
        layers += [nn.BatchNorm2d(width)] if norm else []
        layers += [nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2)] if pooled else []
        given = width
    layers += [nn.Flatten(), nn.Linear(16 * (size // 8) ** 2, 40), nn.ReLU(), nn.Dropout()]
    return nn.Sequential(*layers, nn.Linear(40, classes))


def small_cnn(channels=1, classes=2):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, classes),
    )


def images(shape, count=4, seed=0):
    """Blocks and noise, about zero mean and unit deviation: (count, C, H, W) float32."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.empty(count, *shape).normal_(generator=generator).numpy()
    coarse = torch.empty(count, shape[0], 4, 4).normal_(generator=generator).numpy()
    up = [-(-side // 4) for side in shape[1:]]
    blocks = coarse.repeat(up[0], axis=2).repeat(up[1], axis=3)[..., : shape[1], : shape[2]]
    return np.clip(0.8 * blocks + 0.5 * noise, -3.5, 3.5).astype(np.float32)


def settle(module, shape, seed=0, passes=8):
    """Random affine parameters for every BatchNorm and statistics that hold on ``images``;
    returns the module in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(part.weight, a=5**0.5, generator=generator)
                if part.bias is not None:
                    part.bias.uniform_(-0.1, 0.1, generator=generator)
            if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
                part.weight.uniform_(0.2, 1.0, generator=generator)
                part.bias.normal_(0.0, 0.2, generator=generator)
                part.momentum = None  # cumulative average
        module.train()
        for number in range(passes):
            module(torch.from_numpy(images(shape, 8, seed + 100 + number)))
    return module.eval()


def float_scores(module, batch):
    with torch.no_grad():
        return module.double()(torch.from_numpy(batch).double()).numpy()


@st.composite
def networks(draw):
    """Random small networks (convolutions with or without norm, pooling, averages, residual
    blocks) and their input shapes."""
    layers, channels, size = [], draw(st.integers(1, 2)), draw(st.integers(8, 12))
    shape = (channels, size, size + draw(st.integers(0, 2)))
    for _ in range(draw(st.integers(1, 3))):
        kernel, width = draw(st.sampled_from([1, 3])), 4
        groups = draw(st.sampled_from([1, 2])) if channels % 2 == 0 else 1
        padding = draw(st.integers(0, kernel // 2))
        stride = draw(st.integers(1, 2)) if size > 6 else 1
        layers.append(nn.Conv2d(channels, width, kernel, stride, padding, groups=groups))
        layers += [nn.BatchNorm2d(width)] if draw(st.booleans()) else []
        layers.append(nn.ReLU())
        size = (size + 2 * padding - kernel) // stride + 1
        if draw(st.booleans()):
            layers.append(Block(width, width, 1))
        pool = draw(st.sampled_from([None, nn.MaxPool2d(2), nn.AvgPool2d(2, 1)]))
        if pool is not None and size >= 6:
            layers.append(pool)
            size = size // 2 if isinstance(pool, nn.MaxPool2d) else size - 1
        channels = width
        if size < 4:
            break
    features = draw(st.sampled_from([[], [nn.AdaptiveAvgPool2d(1)]]))
    body = nn.Sequential(*layers, *features, nn.Flatten())
    with torch.no_grad():
        count = body.eval()(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(*body, nn.Linear(count, 3)), shape
