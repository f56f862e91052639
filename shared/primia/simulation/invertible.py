"""A network whose gradient tells its images well: what an owner who wants to see them would choose.

Convolutions with strides in the place of pooling, a smooth activation, and a last layer that sees
every place of the image: after the network with which Zhu, Liu and Han (*Deep Leakage from
Gradients*, NeurIPS 2019, section 4) read images from gradients, with SiLU for its sigmoid. Sites
take such a network as a program (``primia.learning.programs``) once one of their users has approved
it.
"""

from __future__ import annotations

import math

from primia.errors import InvalidInput
from primia.learning.programs.document import Activation, Apply, Conv2d, Flatten, Linear, Program
from primia.learning.spec import ModelSpec

STRIDES = (2, 2, 1)
MAX_WIDTH = 256


def invertible(
    classes: tuple[str, ...], image_size: int, width: int = 12, seed: int = 0
) -> ModelSpec:
    """For grey images; ``width``: channels of each convolution. Raises InvalidInput."""
    if not 1 <= width <= MAX_WIDTH:
        raise InvalidInput(f"The convolutions have 1 to {MAX_WIDTH} channels, not {width}.")
    program = _program(len(classes), image_size, width)
    return ModelSpec.parse(
        {
            "architecture": "program",
            "program": program.model_dump(),
            "classes": classes,
            "image_size": image_size,
            "seed": seed,
        }
    )


def _program(classes: int, side: int, width: int) -> Program:
    layers: list[Conv2d | Linear] = []
    steps: list[Apply | Activation | Flatten] = []
    given, reduced = 1, side
    for number, stride in enumerate(STRIDES):
        path = f"conv{number}"
        layers.append(
            Conv2d(
                path=path,
                given=given,
                made=width,
                kernel=(5, 5),
                stride=(stride, stride),
                padding=(2, 2),
            )
        )
        steps.append(Apply(layer=path, of=len(steps)))
        steps.append(Activation(op="silu", of=len(steps)))
        given, reduced = width, math.ceil(reduced / stride)
    layers.append(Linear(path="head", given=width * reduced**2, made=classes))
    steps.append(Flatten(of=len(steps)))
    steps.append(Apply(layer="head", of=len(steps)))
    return Program(input=(1, side, side), layers=tuple(layers), steps=tuple(steps))
