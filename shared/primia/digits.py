"""Exact convolutions over Z_2^32 or Z_2^64 on signed bytes, where processors have products of them.

A factor is x = sum_i x_i 2^(8i) mod 2^32 with digits of -128 to 127, four of them, or as few as
hold a small weight. Digit i times digit j counts 2^(8(i + j)); from 2^32 on it vanishes, so that
two full factors take 10 products and weights of two digits 7 (over Z_2^64: 36 and 15). The sum of
a product is exact in int32; sums of products wrap as the ring does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # loaded where a map is made: the web processes never need it
    import torch

Elements = NDArray[np.unsignedinteger[Any]]  # uint32 or uint64: of the ring of that many bits
Pair = tuple[int, int]

# Products of two digits reach 2^14: their sum stays below 2^31. torch mistakes the strides of a
# matrix with a single column or row of terms.
MIN_TERMS, MAX_TERMS = 2, (1 << 17) - 1
# Patches worked on at a time: they stay in the second-level cache, and bound the memory.
_PATCH_BYTES = 2 << 20
_CAPABLE = ("avx512_vnni", "avx_vnni", "amx_int8")


def digits(values: Elements) -> NDArray[np.int8]:
    """The balanced digits, least first: (...) -> (..., 4) or (..., 8)."""
    bias = np.frombuffer(b"\x80" * values.itemsize, dtype=values.dtype)[0]
    turned = (np.ascontiguousarray(values) + bias) ^ bias
    split: NDArray[np.int8] = turned.view(np.int8).reshape(*values.shape, values.itemsize)
    return split


def digits_needed(weight: NDArray[np.signedinteger[Any]]) -> int:
    """How many digits hold every weight."""
    lowest, highest = int(weight.min(initial=0)), int(weight.max(initial=0))
    for count in range(1, weight.itemsize):
        ones = sum(1 << 8 * i for i in range(count))
        if -128 * ones <= lowest and highest <= 127 * ones:
            return count
    return weight.itemsize


@functools.cache
def available() -> bool:
    """Whether this machine multiplies bytes fast, and exactly: older processors saturate."""
    import torch

    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in _CAPABLE) and _exact()


def _exact() -> bool:
    import torch

    rows, terms = 48, 256
    a = torch.arange(rows * terms).mul_(73).remainder_(256).sub_(128).reshape(rows, terms)
    b = torch.arange(rows * terms).mul_(151).remainder_(251).sub_(128).reshape(rows, terms)
    a[:4], b[:4] = -128, -128
    found = torch._int_mm(a.to(torch.int8), b.to(torch.int8).t())
    return bool((found == a @ b.t()).all())


class DigitMap:
    """x -> weight * x, the weight's digits prepared once; read-only.

    ``weight``: (out, in, kh, kw), signed or not, of the ring's size (32 or 64 bits), ``MIN_TERMS``
    to ``MAX_TERMS`` terms.
    """

    def __init__(self, weight: NDArray[Any], stride: Pair, padding: Pair) -> None:
        import torch

        size = weight.itemsize
        self._element: np.dtype[Any] = np.dtype(f"u{size}")
        self._digits, self._total = size, torch.int32 if size == 4 else torch.int64
        outputs, self._inputs, *kernel = weight.shape
        self._outputs, self._kernel = outputs, (kernel[0], kernel[1])
        self._stride, self._padding = stride, padding
        self._count = digits_needed(weight.view(f"i{size}"))
        planes = digits(weight.view(self._element))[..., : self._count]
        # A row for each digit and output, the terms in the order of a patch: (kh, kw, in).
        rows = np.ascontiguousarray(planes.transpose(4, 0, 2, 3, 1))
        self._rows = torch.from_numpy(rows.reshape(self._count * outputs, -1))

    def __call__(self, x: Elements) -> NDArray[Any]:
        """(N, in, H, W) -> (N, out, H', W'), exact in the ring."""
        import torch

        height, width = self._size(x.shape[2:])
        result = np.empty((len(x), self._outputs, height, width), dtype=self._element)
        with torch.inference_mode():
            for first, last in self._groups(len(x), height * width):
                planes = self._planes(x[first:last])
                for top, bottom in self._bands(last - first, height, width):
                    patches = self._patches(planes, top, bottom, width)
                    total = self._multiply(patches).numpy().view(self._element)
                    part = total.reshape(self._outputs, last - first, bottom - top, width)
                    result[first:last, :, top:bottom] = part.swapaxes(0, 1)
        return result

    def _size(self, size: tuple[int, ...]) -> Pair:
        height, width = (
            (size[i] + 2 * self._padding[i] - self._kernel[i]) // self._stride[i] + 1
            for i in (0, 1)
        )
        return height, width

    def _groups(self, count: int, positions: int) -> Iterator[Pair]:
        """Images that are worked on together: several where they are small."""
        size = max(1, _PATCH_BYTES // (positions * self._patch_bytes))
        for start in range(0, count, size):
            yield start, min(start + size, count)

    def _bands(self, images: int, height: int, width: int) -> Iterator[Pair]:
        """Rows of the result that are worked on together."""
        rows = max(1, _PATCH_BYTES // (images * width * self._patch_bytes))
        for top in range(0, height, rows):
            yield top, min(top + rows, height)

    @property
    def _patch_bytes(self) -> int:
        return self._digits * int(self._rows.shape[1])

    def _planes(self, x: Elements) -> torch.Tensor:
        """The zero-padded digits, (digits, N, H + 2p, W + 2p, in)."""
        import torch

        (pad_h, pad_w), (count, _, height, width) = self._padding, x.shape
        size = height + 2 * pad_h, width + 2 * pad_w
        planes = torch.zeros((self._digits, count, *size, self._inputs), dtype=torch.int8)
        inner = planes[:, :, pad_h : pad_h + height, pad_w : pad_w + width]
        inner.copy_(torch.from_numpy(digits(x)).permute(4, 0, 2, 3, 1))
        return planes

    def _patches(self, planes: torch.Tensor, top: int, bottom: int, width: int) -> torch.Tensor:
        """What each position of the result sees: (digits, positions, terms)."""
        (step_h, step_w), (kernel_h, kernel_w) = self._stride, self._kernel
        digit, image, row, column, _ = planes.stride()
        view = planes[:, :, top * step_h :].as_strided(
            (self._digits, planes.shape[1], bottom - top, width, kernel_h, kernel_w * self._inputs),
            (digit, image, row * step_h, column * step_w, row, 1),
        )
        return view.reshape(self._digits, -1, self._rows.shape[1])

    def _multiply(self, patches: torch.Tensor) -> torch.Tensor:
        """(out, positions), signed."""
        import torch

        total = torch.zeros((self._outputs, patches.shape[1]), dtype=self._total)
        space = torch.empty((len(self._rows), patches.shape[1]), dtype=torch.int32)
        for i in range(self._digits):
            used = min(self._count, self._digits - i)
            products = space[: used * self._outputs]
            torch._int_mm(self._rows[: len(products)], patches[i].t(), out=products)
            for j in range(used):
                product = products[j * self._outputs : (j + 1) * self._outputs]
                total.add_(product, alpha=1 << 8 * (i + j))
        return total

    def __repr__(self) -> str:
        return f"DigitMap(<{self._count} digits>)"


def suits(weight: NDArray[Any], groups: int) -> bool:
    """Whether this machine should and can work on digits for a linear layer of that weight."""
    return groups == 1 and MIN_TERMS <= math.prod(weight.shape[1:]) <= MAX_TERMS and available()


def linear(weight: NDArray[Any], window: tuple[Pair, Pair] | None) -> Callable[[Any], Any]:
    """The map of a convolution (stride, padding), or of a matrix (out, in) where there is none."""
    if window is not None:
        return DigitMap(weight, *window)
    single = DigitMap(weight[:, :, None, None], (1, 1), (0, 0))
    return lambda x: single(x[:, :, None, None])[:, :, 0, 0]
