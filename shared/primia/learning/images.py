"""An image file as pixels: the one path for training and for inference.

Both see exactly the same numbers, since both call ``decode``: uint8, shape (channels, size, size).
Files come from users, so everything about them is bounded: bytes, pixels, formats, frames.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from primia.errors import InvalidInput

Pixels = NDArray[np.uint8]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601

# Counted up when ``decode`` yields other pixels for the same file: caches are keyed by it.
VERSION = 2
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom"})
DICOM_HEAD = 132  # bytes until a DICOM file has said that it is one
MAX_FILE_BYTES = 64 << 20
# The largest digital radiographs have some 20 million pixels.
MAX_PIXELS = 40_000_000
MIN_SIDE = 16
GREY_TOLERANCE = 8  # levels of 255

# What Pillow's decoders raise on damaged files.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    AttributeError,
    struct.error,
    zlib.error,
)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class ImageRejected(InvalidInput):
    """A file that is no image we take; the detail has its name (without folders) and the reason."""

    code = "image-rejected"
    title = "Image refused"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"{name}: {reason}.",
            hint="Images are PNG, JPEG, TIFF, BMP or DICOM files, grey or colour.",
            file=name,
        )
        self.reason = reason


def read_bytes(path: Path) -> bytes:
    """The file's bytes. Raises ImageRejected for what cannot be read or is over the limit."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ImageRejected(path.name, f"cannot be read ({error.strerror})") from None
    if len(data) > MAX_FILE_BYTES:
        raise ImageRejected(path.name, f"has more than {MAX_FILE_BYTES >> 20} MiB")
    return data


def decode(data: bytes, size: int, channels: int, name: str = "image") -> Pixels:
    """The image of a file's bytes, uint8 (channels, size, size).

    The whole image is stretched to the square (bilinear over all source pixels). Colour becomes
    grey by ITU-R 601; grey is repeated for three channels. Samples of more than 8 bits are scaled
    from 10, 12, 14 or 16 bits, whichever first holds the largest value; DICOM as its own window
    says (dicom.py). ``name`` is for errors.
    """
    if len(data) > MAX_FILE_BYTES:
        raise ImageRejected(name, f"has more than {MAX_FILE_BYTES >> 20} MiB")
    if is_dicom(data):
        return _from_dicom(data, size, channels, name)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, name)
            image.load()
            upright = ImageOps.exif_transpose(image)
            return _pixels(upright, size, channels, name)
    except ImageRejected:
        raise
    except _BOMBS:
        raise ImageRejected(name, f"has more than {MAX_PIXELS} pixels") from None
    except UnidentifiedImageError:
        raise ImageRejected(name, "is not an image in a format we read") from None
    except MemoryError:
        raise ImageRejected(name, "takes too much memory to decode") from None
    except DAMAGED as error:
        raise ImageRejected(name, f"is damaged or cut short ({type(error).__name__})") from None


def is_colour(pixels: Pixels) -> bool:
    """Whether uint8 (3, size, size) is more than grey kept in three channels, as many radiographs
    are: compression alone moves the channels apart by a few levels."""
    return bool(np.ptp(pixels, axis=0).max() > GREY_TOLERANCE)


def is_dicom(data: bytes) -> bool:
    return data[128:DICOM_HEAD] == b"DICM"


def load(path: Path, size: int, channels: int) -> Pixels:
    """``decode`` of a file."""
    return decode(read_bytes(path), size, channels, path.name)


def normalise(
    pixels: Pixels, mean: float | tuple[float, ...], std: float | tuple[float, ...]
) -> NDArray[np.float32]:
    """(pixels / 255 - mean) / std as float32, same shape: what the model sees.

    ``pixels``: uint8 (..., channels, height, width); ``mean`` and ``std``: one value, or one a
    channel.
    """
    scale = 1 / (255 * np.reshape(np.asarray(std), (-1, 1, 1)))  # (1 | channels, 1, 1)
    offset = np.reshape(np.asarray(mean), (-1, 1, 1)) / np.reshape(np.asarray(std), (-1, 1, 1))
    scaled = np.multiply(pixels, scale.astype(np.float32), dtype=np.float32)
    return np.subtract(scaled, offset.astype(np.float32), out=scaled)


def original_size(data: bytes, name: str = "image") -> tuple[int, int]:
    """(width, height) of the image in a file's bytes, from its header. Raises ImageRejected."""
    try:
        if is_dicom(data):
            from primia.learning import dicom  # pydicom: only where there is such a file

            return dicom.size(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, name)
            return image.size
    except _BOMBS:
        raise ImageRejected(name, f"has more than {MAX_PIXELS} pixels") from None
    except DAMAGED as error:
        raise ImageRejected(name, f"is damaged or cut short ({type(error).__name__})") from None


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageRejected(name, f"has more than {MAX_PIXELS} pixels ({width} x {height})")
    if min(width, height) < MIN_SIDE:
        raise ImageRejected(name, f"is too small ({width} x {height}; at least {MIN_SIDE} a side)")
    if getattr(image, "n_frames", 1) > 1:
        raise ImageRejected(name, "holds several images; save the one that is meant by itself")


def _pixels(image: Image.Image, size: int, channels: int, name: str) -> Pixels:
    if image.mode in {"I;16", "I;16L", "I;16B", "I"}:
        grey = _from_deep(np.asarray(image), size, name)  # (size, size)
        return np.repeat(grey[np.newaxis], channels, axis=0)  # (channels, size, size)
    if image.mode not in {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr", "CMYK"}:
        raise ImageRejected(name, f"has samples of a kind we do not read ({image.mode})")
    eight = image.convert("L" if channels == 1 else "RGB")
    square = np.asarray(eight.resize((size, size), Image.Resampling.BILINEAR))
    if channels == 1:
        return square[np.newaxis].copy()  # (1, size, size)
    return np.ascontiguousarray(square.transpose(2, 0, 1))  # (3, size, size)


def _from_dicom(data: bytes, size: int, channels: int, name: str) -> Pixels:
    from primia.learning import dicom  # as above

    try:
        values = dicom.grey_values(data, MAX_PIXELS, MIN_SIDE)
    except dicom.NotTaken as error:
        raise ImageRejected(name, str(error)) from None
    except MemoryError:
        raise ImageRejected(name, "takes too much memory to decode") from None
    except dicom.Damaged as error:
        raise ImageRejected(name, f"is damaged or cut short ({error})") from None
    planes = values[..., np.newaxis] if values.ndim == 2 else values
    if channels == 1 and planes.shape[-1] == 3:
        planes = planes @ _LUMA[:, np.newaxis]  # (rows, columns, 1)
    squares = [_resized(planes[..., k], size) * 255 for k in range(planes.shape[-1])]
    pixels: Pixels = np.clip(np.rint(np.stack(squares)), 0, 255).astype(np.uint8)
    return pixels if len(pixels) == channels else np.repeat(pixels, channels, axis=0)


def _resized(plane: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    image = Image.fromarray(np.ascontiguousarray(plane, np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _from_deep(values: NDArray[Any], size: int, name: str) -> Pixels:
    """Grey samples of more than 8 bits to uint8 (size, size)."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 0xFFFF:
        raise ImageRejected(name, "has samples outside 0 to 65535")
    bits = next(depth for depth in (8, 10, 12, 14, 16) if high < 1 << depth)
    square = _resized(values, size)
    scaled = np.rint(square * np.float32(255 / ((1 << bits) - 1)))
    pixels: Pixels = np.clip(scaled, 0, 255).astype(np.uint8)
    return pixels
