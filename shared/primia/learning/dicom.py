"""Radiographs in DICOM files: pixels in full depth to grey values, and nothing of the patient.

Values go the way that PS3.3 lays down: stored values, modality (rescale) transformation, VOI lookup
table or window (C.11.2), then inversion where low values are meant to be white. Padding
(C.7.5.1.1.2) takes no part in any of it and is black. Colour is RGB once it is decoded. What
identifies the patient is read for one purpose: images of one patient stay on one side of a split.
It becomes a digest, which stays in the institution as the rest of the manifest does.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

# Inflating is not bounded by the file's size.
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_INVERTED, _GREY, _COLOUR = "MONOCHROME1", ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_")


class NotTaken(ValueError):
    """A DICOM file that is no single radiograph; the text is the reason."""


class Damaged(ValueError):
    """A file that pydicom cannot make sense of; the text is the name of its error."""


@contextlib.contextmanager
def _damage_is_typed() -> Iterator[None]:
    try:
        yield
    except (NotTaken, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001  # of many kinds, and not all of them documented
        raise Damaged(type(error).__name__) from None


def grey_values(data: bytes, max_pixels: int, min_side: int) -> NDArray[np.float32]:
    """The image as float32 (rows, columns) or (rows, columns, 3), from 0 (black) to 1 (white).

    Raises NotTaken or Damaged.
    """
    with _damage_is_typed():
        values = _grey_values(data, max_pixels, min_side)
    if not np.isfinite(values).all():
        raise NotTaken("is DICOM whose rescaling leads beyond all numbers")
    return values


def _grey_values(data: bytes, max_pixels: int, min_side: int) -> NDArray[np.float32]:
    dataset = _read(data)
    _check(dataset, max_pixels, min_side)
    stored, kind = _decoded(dataset)
    if kind not in _GREY:
        return np.asarray(stored, np.float32) / np.float32((1 << int(dataset.BitsStored)) - 1)
    shown = ~_padding(stored, dataset)  # (rows, columns)
    if not shown.any():
        raise NotTaken("is DICOM of padding alone")
    rescaled = np.asarray(apply_modality_lut(stored, dataset), np.float64)
    values = _windowed(rescaled, shown, dataset)
    return np.where(shown, 1 - values if kind == _INVERTED else values, 0).astype(np.float32)


def _decoded(dataset: Dataset) -> tuple[NDArray[np.generic], str]:
    """Stored values, and what they are once the decoder has led YBR to RGB, which it does itself
    (so the header's word is not that of the pixels)."""
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that the compressed image itself contradicts
        stored, found = decoder.as_array(dataset)
    kind = str(found["photometric_interpretation"])
    if kind not in (*_GREY, "RGB"):
        raise NotTaken(f"is DICOM of a kind we do not read ({kind[:20]})")
    return stored, kind


def _padding(stored: NDArray[np.generic], dataset: Dataset) -> NDArray[np.bool_]:
    """bool (rows, columns): the pixels that only fill the rectangle, by one value or a range."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return np.zeros(stored.shape, np.bool_)
    last = dataset.get("PixelPaddingRangeLimit")
    ends = np.array([int(first), int(first if last is None else last)], np.int64)
    ends = ends.astype(stored.dtype)  # some write -2000 as 63536
    return np.asarray((stored >= ends.min()) & (stored <= ends.max()))


def patient(data: bytes) -> str | None:
    """A digest of the patient's number (or name), the same for the same patient; None without.
    Raises Damaged."""
    with _damage_is_typed():
        dataset = dcmread(io.BytesIO(data), stop_before_pixels=True)
        for keyword in ("PatientID", "PatientName"):
            stated = str(dataset.get(keyword, "")).strip()
            if stated:
                text = f"primia/patient/{dataset.get('IssuerOfPatientID', '')}/{stated}"
                return f"dicom-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    return None


def size(data: bytes) -> tuple[int, int]:
    """(columns, rows), from the header. Raises Damaged."""
    with _damage_is_typed():
        dataset = dcmread(io.BytesIO(data), stop_before_pixels=True)
        return int(dataset.Columns), int(dataset.Rows)


def _read(data: bytes) -> Dataset:
    if _DEFLATED in data[:4096]:
        raise NotTaken("is DICOM in the deflated transfer syntax: save it uncompressed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that break the standard's letter
        return dcmread(io.BytesIO(data))


def _check(dataset: Dataset, max_pixels: int, min_side: int) -> None:
    if "PixelData" not in dataset:
        raise NotTaken("is a DICOM file without an image")
    if int(dataset.get("NumberOfFrames", 1) or 1) > 1:
        raise NotTaken("is a DICOM file of several frames; save the one that is meant by itself")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns > max_pixels:
        raise NotTaken(f"has more than {max_pixels} pixels ({columns} x {rows})")
    if min(rows, columns) < min_side:
        raise NotTaken(f"is too small ({columns} x {rows}; at least {min_side} a side)")
    kind = str(dataset.PhotometricInterpretation)
    if kind not in _GREY and not kind.startswith(_COLOUR):
        raise NotTaken(f"is DICOM of a kind we do not read ({kind[:20]})")


def _windowed(
    values: NDArray[np.float64], shown: NDArray[np.bool_], dataset: Dataset
) -> NDArray[np.float64]:
    """To 0 … 1 by the file's first lookup table or window, else by the extremes of what is shown
    (padding may lie beyond them)."""
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        looked_up = apply_voi_lut(values.astype(np.int64), dataset, prefer_lut=True)
        return np.clip(np.asarray(looked_up, np.float64) / ((1 << bits) - 1), 0, 1)
    centre, width = _first(dataset, "WindowCenter"), _first(dataset, "WindowWidth")
    if centre is None or width is None or width < 1:
        low, high = float(values[shown].min()), float(values[shown].max())
        return (values - low) / max(high - low, 1.0)
    function = str(dataset.get("VOILUTFunction", "LINEAR") or "LINEAR")
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(-4 * (values - centre) / width)))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    return np.clip((values - (centre - 0.5)) / max(width - 1, 1) + 0.5, 0, 1)


def _first(dataset: Dataset, keyword: str) -> float | None:
    value = dataset.get(keyword)
    if isinstance(value, MultiValue):
        value = value[0] if value else None
    if value is None or value == "":
        return None
    if not math.isfinite(float(value)):
        raise NotTaken("is DICOM with a window that is no number")
    return float(value)
