"""A data set's pixels, decoded once and memory-mapped from then on.

One ``.npy`` file a data set and image size, named by the digest of all that its contents depend
on, so that a file that is there is right. It appears whole or not at all; two processes that build
it at once both end with the same file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from primia.errors import InvalidInput
from primia.learning import images, masks
from primia.learning.datasets import safe_path
from primia.learning.manifest import DatasetManifest, Entry
from primia.learning.storage import replacing

Progress = Callable[[int, int], None]  # (done, of how many)


class DatasetChanged(InvalidInput):
    """A file is not the one that was registered."""

    code = "data-set-changed"
    title = "Data set changed since its registration"
    status = 409


def cache_file(folder: Path, manifest: DatasetManifest, size: int, channels: int) -> Path:
    """Where the pixels of this data set lie."""
    key = f"{manifest.digest}/{size}/{channels}/{images.VERSION}"
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"


def load_pixels(
    manifest: DatasetManifest,
    root: Path,
    size: int,
    channels: int,
    folder: Path,
    progress: Progress | None = None,
) -> NDArray[np.uint8]:
    """uint8 (images, channels, size, size) in the manifest's order, read-only and memory-mapped.

    Built in ``folder`` on first use (one byte a sample on disk, one image at a time in memory).
    Raises ImageRejected, DatasetChanged, or StorageFull.
    """
    target = cache_file(folder, manifest, size, channels)
    shape = (len(manifest), channels, size, size)
    found = _open(target, shape)
    if found is None:
        with replacing(target, "the decoded images") as file:
            npy.write_array_header_1_0(
                file, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            for done, pixels in enumerate(_decoded(manifest, root, size, channels), start=1):
                file.write(pixels.data)
                if progress:
                    progress(done, len(manifest))
        found = _open(target, shape)
    if found is None:
        raise InvalidInput(f"The cache file {target.name} cannot be read back.")
    return found


def load_masks(
    manifest: DatasetManifest,
    root: Path,
    size: int,
    folder: Path,
    progress: Progress | None = None,
) -> NDArray[np.uint8]:
    """Class numbers, uint8 (images, size, size), in the manifest's order; as ``load_pixels``."""
    key = f"{manifest.digest}/{size}/masks/{masks.VERSION}"
    target = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
    shape = (len(manifest), size, size)
    found = _open(target, shape)
    if found is None:
        with replacing(target, "the decoded masks") as file:
            npy.write_array_header_1_0(
                file, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            for done, entry in enumerate(manifest.entries, start=1):
                data = _read(root, entry.mask, entry.mask_sha256)
                file.write(masks.decode(data, entry.mask, size).data)
                if progress:
                    progress(done, len(manifest))
        found = _open(target, shape)
    if found is None:
        raise InvalidInput(f"The cache file {target.name} cannot be read back.")
    return found


def load_sizes(
    manifest: DatasetManifest, root: Path, progress: Progress | None = None
) -> NDArray[np.int64]:
    """(images, 2): width and height of each image as it is stored, in the manifest's order.

    Raises ImageRejected or DatasetChanged.
    """
    sizes = np.empty((len(manifest), 2), dtype=np.int64)
    for index, entry in enumerate(manifest.entries):
        sizes[index] = images.original_size(_registered(root, entry), entry.path)
        if progress:
            progress(index + 1, len(manifest))
    return sizes


def _open(target: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The mapped array, or None where there is none or it is damaged (it is then built again)."""
    if math.prod(shape) == 0:
        raise InvalidInput("The data set has no images.")
    try:
        mapped = np.load(target, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return mapped if mapped.shape == shape and mapped.dtype == np.uint8 else None


def _decoded(
    manifest: DatasetManifest, root: Path, size: int, channels: int
) -> Iterator[images.Pixels]:
    for entry in manifest.entries:
        yield images.decode(_registered(root, entry), size, channels, entry.path)


def _registered(root: Path, entry: Entry) -> bytes:
    return _read(root, entry.path, entry.sha256)


def _read(root: Path, path: str, digest: str) -> bytes:
    """The file's bytes, if they are those that were registered."""
    try:
        data = images.read_bytes(safe_path(root, path))
    except InvalidInput as error:
        raise DatasetChanged(f"{path}: {error.detail}.") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise DatasetChanged(
            f"{path} is not the file that was registered.",
            hint="Register the data set again.",
        )
    return data
