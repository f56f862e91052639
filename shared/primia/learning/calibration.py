"""Images for measuring how large a model's values get: the owner's own, or probes.

Layers without BatchNorm say nothing of their values' sizes, so the plan compiler measures them. The
probes, for where nobody has given real images, are as unlike one another as pixels can be: full
contrast at every scale, in every direction and colour, noise, and plain areas. Real images have
less of each.
"""

from __future__ import annotations

import math

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save

from primia.errors import InvalidInput
from primia.learning.images import Pixels, normalise
from primia.learning.spec import ModelSpec
from primia.prg import Seed, Stream

_SEED = Seed(bytes(16))  # public: everybody draws the same probes
_TENSOR = "pixels"
MAX_IMAGES = 64


def probes(spec: ModelSpec) -> NDArray[np.float32]:
    """Normalised probes as the model takes them, (N, channels, image_size, image_size)."""
    return normalise(probe_pixels(spec.channels, spec.image_size), spec.mean, spec.std)


def probe_pixels(channels: int, side: int) -> Pixels:
    """uint8 (N, channels, side, side); the same ones at every call."""
    row, column = np.mgrid[0:side, 0:side]
    ramp = column * 255 // max(1, side - 1)
    flat = np.zeros((side, side), int)
    disc = 255 * ((row - side / 2) ** 2 + (column - side / 2) ** 2 < (side / 3) ** 2)
    shapes = [flat, flat + 255, ramp, 255 - ramp.T, disc]
    for period in (2, side // 4, side):
        shapes.append(255 * (column * 2 // period % 2))
        shapes.append(255 * ((row * 2 // period + column * 2 // period) % 2))
    grey = np.stack(shapes)[:, None].repeat(channels, axis=1)  # (n, C, H, W)
    noise = Stream(_SEED, "calibration").words(2 * channels * side * side)
    rough = (noise >> 24).astype(int).reshape(2, channels, side, side)
    return np.concatenate([grey, rough, *_colours(channels, disc)]).astype(np.uint8)


def _colours(channels: int, shape: NDArray[np.int_]) -> list[NDArray[np.int_]]:
    """The shape in one channel at a time, on black and on white."""
    if channels == 1:
        return []
    single = np.eye(channels, dtype=int)[:, :, None, None]  # (C, C, 1, 1)
    return [single * shape, 255 - single * shape]


def pack(pixels: Pixels) -> bytes:
    """A safetensors file with the one tensor ``pixels``."""
    return save({_TENSOR: np.ascontiguousarray(pixels)})


def unpack(data: bytes, shape: tuple[int, int, int]) -> Pixels:
    """uint8 (N, *shape), N from 1 to MAX_IMAGES, of a user's file. Raises InvalidInput."""
    if len(data) > largest_file(shape):
        raise InvalidInput(f"At most {MAX_IMAGES} calibration images are taken.")
    try:
        found = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise InvalidInput(f"The calibration images are no safetensors file: {error}.") from None
    tensor = found.get(_TENSOR)
    if tensor is None or len(found) != 1:
        raise InvalidInput(f"The file must hold the one tensor {_TENSOR!r}.")
    count, *rest = tensor["shape"] or [0]
    if tensor["dtype"] != "U8" or tuple(rest) != shape or not 1 <= count <= MAX_IMAGES:
        raise InvalidInput(
            f"The calibration images are {tensor['dtype']} {tuple(tensor['shape'])}; U8 "
            f"(1 to {MAX_IMAGES}, {', '.join(map(str, shape))}) is needed."
        )
    return np.frombuffer(tensor["data"], np.uint8).reshape(tensor["shape"])


def largest_file(shape: tuple[int, int, int]) -> int:
    """Bytes that ``unpack`` takes at most."""
    return MAX_IMAGES * math.prod(shape) + 4096
