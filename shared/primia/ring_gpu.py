"""Exact linear maps over Z_2^32 and Z_2^64 on a GPU: products of limbs as float64 matrices.

An element is a sum of limbs with signs, two of 16 bits, or of 22, 21 and 21: x = sum_i 2^(s_i) x_i.
Limb i times limb j counts 2^(s_i + s_j) and vanishes from 2^32 (2^64) on, so that two full factors
take three products of limbs (six); a weight that is small enough meets the input's limbs in one.

Patches are laid out by unfolding and multiplied as matrices. That sums products in some order,
every sum an integer up to 2^53, which float64 holds. cuDNN's convolutions are not used: they may
choose a Fourier or Winograd transform, which is not exact.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from primia.errors import InvalidInput, Unavailable
from primia.ring import EXACT, Pair, Window

# Bits of each limb, the least significant first.
_WIDTHS = {32: (16, 16), 64: (22, 21, 21)}
# What is worked on at a time takes this much of the device's memory, or one row of one result.
_PIECE_BYTES = 256 << 20


class GpuMap:
    """As ``primia.ring.LinearMap``, or ``LinearMap64`` with ``bits`` 64; read-only.

    ``device``: torch's name; ``cpu`` computes the same. The weight stays there, 8 bytes an element
    and limb. Raises Unavailable where float64 products are not exact.
    """

    def __init__(
        self,
        weight: NDArray[Any],
        window: Window | None = None,
        *,
        bits: int = 32,
        device: str = "cuda",
    ) -> None:
        kinds = np.dtype(np.int32), np.dtype(f"u{bits // 8}")
        if weight.ndim != (4 if window else 2) or weight.dtype not in kinds:
            raise InvalidInput(f"A map takes an int32 or uint{bits} weight of 4 or 2 dimensions.")
        self._device = torch.device(device)
        if not _exact(self._device):
            raise Unavailable(
                f"Float64 products on the device {device} are not exact.",
                hint="Take another PRIMIA_KERNEL, or turn cuBLAS's emulation of float64 off.",
            )
        self._shape, self._dense, self._window = weight.shape, window is None, window or Window()
        self._bits, self._widths = bits, _WIDTHS[bits]
        self._starts = tuple(itertools.accumulate(self._widths[:-1], initial=0))
        self._kernel: Pair = (1, 1) if self._dense else (weight.shape[2], weight.shape[3])
        self._terms = math.prod(weight.shape[1:])
        self._weights, self._run = self._prepare(weight)

    def _prepare(self, weight: NDArray[Any]) -> tuple[list[torch.Tensor], int]:
        """The weight's limbs, (groups, out / groups, terms), and the terms whose sum is exact."""
        signed = weight.view(f"i{weight.itemsize}").astype(np.int64)
        largest = max(1, int(signed.max(initial=0)), -int(signed.min(initial=0)))
        limb = 1 << (max(self._widths) - 1)
        values = torch.from_numpy(signed.reshape(self._window.groups, -1, self._terms))
        if largest * limb * self._terms <= EXACT:
            return [values.to(self._device, torch.float64)], self._terms
        parts = _limbs(values, self._widths)
        return [part.to(self._device, torch.float64) for part in parts], EXACT // limb**2

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:
        """x: (N, in, H, W) or (N, in) -> (N, out, H', W') or (N, out), exact in the ring."""
        if self._dense:
            x = x[:, :, None, None]
        height, width = self._size(x.shape[2:])
        result = np.empty((len(x), self._shape[0], height, width), dtype=x.dtype)
        with torch.inference_mode():
            for first, last, top, bottom in self._pieces(x.shape, height, width):
                part = self._piece(x[first:last], top, bottom - top)
                result[first:last, :, top:bottom] = part.swapaxes(0, 1)
        return result[:, :, 0, 0] if self._dense else result

    def _size(self, size: tuple[int, ...]) -> Pair:
        padding, stride = self._window.padding, self._window.stride
        height, width = (
            (size[i] + 2 * padding[i] - self._kernel[i]) // stride[i] + 1 for i in (0, 1)
        )
        return height, width

    def _pieces(
        self, shape: tuple[int, ...], height: int, width: int
    ) -> Iterator[tuple[int, int, int, int]]:
        """First and last image, top and bottom row of the results that are worked on together."""
        fixed, row = self._bytes(shape, width)
        images = max(1, _PIECE_BYTES // (fixed + row * height))
        rows = min(height, max(1, (_PIECE_BYTES - fixed) // row))
        for first in range(0, shape[0], images):
            for top in range(0, height, rows):
                yield first, min(first + images, shape[0]), top, min(top + rows, height)

    def _bytes(self, shape: tuple[int, ...], width: int) -> Pair:
        """What an image takes there, at most: whatever its rows, and for each row of the result."""
        limbs, element, step = len(self._widths), self._bits // 8, self._window.stride[0]
        padded = shape[1] * (shape[3] + 2 * self._window.padding[1])
        read = padded * (8 * limbs + 5 * element)  # limbs and what they are made by
        patches = 8 * limbs * self._terms * self._window.groups
        products = self._shape[0] * (8 * limbs + 8 + 8 + element)  # two int64: a sum and a term
        return (self._kernel[0] - step) * read, step * read + width * (patches + products)

    def _piece(self, x: NDArray[Any], top: int, rows: int) -> NDArray[Any]:
        """(out, N, rows, W') of the images, from the row ``top`` of their results on."""
        patches = self._patches(self._planes(x, top, rows))
        total = self._multiply(patches, patches.shape[2] // len(self._widths))
        signed = total if self._bits == 64 else total.to(torch.int32)  # wraps
        return signed.cpu().numpy().view(x.dtype).reshape(self._shape[0], len(x), rows, -1)

    def _planes(self, x: NDArray[Any], top: int, rows: int) -> torch.Tensor:
        """The zero-padded limbs that these rows of the results see, (limbs, N, in, rows', W')."""
        (pad_h, pad_w), (step, _) = self._window.padding, self._window.stride
        count, channels, height, width = x.shape
        start, seen = top * step - pad_h, (rows - 1) * step + self._kernel[0]
        first, last = min(max(0, start), height), min(max(0, start + seen), height)
        size = (len(self._widths), count, channels, seen, width + 2 * pad_w)
        planes = torch.zeros(size, dtype=torch.float64, device=self._device)
        inner = planes[:, :, :, first - start : last - start, pad_w : pad_w + width]
        own = np.array(x[:, :, first:last]).view(f"i{x.itemsize}")  # may be a read-only map
        for plane, limb in zip(
            inner, _limbs(torch.from_numpy(own).to(self._device), self._widths), strict=True
        ):
            plane.copy_(limb)
        return planes

    def _patches(self, planes: torch.Tensor) -> torch.Tensor:
        """What each position of a result sees: (groups, terms, limbs x positions)."""
        (step_h, step_w), (kernel_h, kernel_w) = self._window.stride, self._kernel
        windows = planes.unfold(3, kernel_h, step_h).unfold(4, kernel_w, step_w)
        ordered = windows.permute(2, 5, 6, 0, 1, 3, 4)  # in, kh, kw, limb, N, H', W'
        return ordered.reshape(self._window.groups, self._terms, -1)

    def _multiply(self, patches: torch.Tensor, positions: int) -> torch.Tensor:
        """(groups, out / groups, positions), int64, which wraps as the ring does."""
        size = (self._window.groups, self._shape[0] // self._window.groups, positions)
        total = torch.zeros(size, dtype=torch.int64, device=self._device)
        for weight, start in zip(self._weights, self._starts, strict=False):
            shifts = [start + other for other in self._starts if start + other < self._bits]
            seen = patches[:, :, : len(shifts) * positions]
            for at in range(0, self._terms, self._run):
                run = slice(at, at + self._run)
                _add(total, torch.bmm(weight[:, :, run], seen[:, run]), shifts)
        return total

    def __repr__(self) -> str:
        return f"GpuMap(<{self._shape}>)"


def _add(total: torch.Tensor, product: torch.Tensor, shifts: Sequence[int]) -> None:
    """Add the products with each limb of the input, times its power of two."""
    for part, shift in zip(product.chunk(len(shifts), 2), shifts, strict=True):
        total.add_(part.to(torch.int64), alpha=1 << shift)


def _limbs(x: torch.Tensor, widths: Sequence[int]) -> Iterator[torch.Tensor]:
    """Limbs of -2^(width - 1) to 2^(width - 1) - 1, the least first; what is above is dropped."""
    for width in widths:
        half = 1 << (width - 1)
        limb = x & (2 * half - 1)
        limb ^= half
        limb -= half
        yield limb
        x = x - limb
        x >>= width


@functools.cache
def _exact(device: torch.device) -> bool:
    """Whether float64 products are what IEEE 754 says, in sums up to 2^53; tried once a process."""
    rows, terms, largest = 128, 2048, 1 << 21
    factors = [
        largest - torch.arange(rows * terms).mul_(step).remainder_(251).reshape(rows, terms)
        for step in (73, 151)
    ]
    a, b = (factor.to(device, torch.float64)[None] for factor in factors)
    found = torch.bmm(a, b.mT)[0].to("cpu", torch.int64)
    return bool((found == factors[0] @ factors[1].t()).all())
