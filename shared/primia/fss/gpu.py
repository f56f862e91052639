"""Comparison kernels on a GPU: PyTorch carries the keys there, Triton evaluates or makes them.

``device="cpu"`` is for Triton's interpreter (TRITON_INTERPRET=1), which checks the code without a
GPU. Table lookups of AES depend on the nodes: on a GPU that strangers share, time may tell of them.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from primia.fss import aes
from primia.fss.geometry import KeyShape
from primia.fss.kernel import Bits, KeyBlock, Numbers, Words

# Comparisons of one program instance: their nodes and AES states fit its registers.
_SIZE = 128


def available() -> bool:
    return importlib.util.find_spec("triton") is not None and torch.cuda.is_available()


class _Device:
    """Where the kernels run, with their tables there."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self.table, self.keys = self.put(aes.table()), self.put(aes.round_keys())

    def put(self, array: NDArray[Any]) -> torch.Tensor:
        """A copy there; through memory of its own, for an array may be a read-only map."""
        pinned = self._device.type == "cuda"
        staged = torch.empty(array.nbytes, dtype=torch.uint8, pin_memory=pinned)
        np.copyto(staged.numpy(), np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        return staged.to(self._device, non_blocking=True)

    def columns(self, array: NDArray[Any]) -> torch.Tensor:
        return self.put(array).view(torch.uint32)

    def empty(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device=self._device)


class GpuEvaluator:
    """Implements ``primia.fss.kernel.Evaluator``."""

    def __init__(self, device: str = "cuda") -> None:
        self._on = _Device(device)

    def evaluate(
        self, shape: KeyShape, party: int, x: Numbers, roots: Words, key: KeyBlock
    ) -> Bits:
        from primia.fss import gpu_code

        on, count = self._on, len(x)
        result = on.empty(count, torch.uint8)
        gpu_code.evaluate[_grid(count)](
            on.columns(x),
            on.columns(roots),
            on.columns(key.words),
            on.columns(key.leaves),
            on.put(key.bits),
            on.table.view(torch.uint32),
            on.keys.view(torch.uint32),
            result,
            count,
            shape.levels,
            shape.leaf_bits,
            party,
            SIZE=_SIZE,
        )
        found: Bits = result.cpu().numpy()
        return found


class GpuGenerator:
    """Implements ``primia.fss.kernel.Generator``."""

    def __init__(self, device: str = "cuda") -> None:
        self._on = _Device(device)

    def generate(
        self,
        shape: KeyShape,
        alpha: Numbers,
        constant: Bits,
        roots: tuple[Words, Words],
        out: KeyBlock,
    ) -> None:
        from primia.fss import gpu_code

        on, count, levels = self._on, len(alpha), shape.levels
        words = on.empty(4 * count * levels, torch.uint32)
        leaves = on.empty(4 * count, torch.uint32)
        extras = on.empty(count * levels, torch.uint8)
        gpu_code.generate[_grid(count)](
            on.columns(alpha),
            on.put(constant),
            on.columns(roots[0]),
            on.columns(roots[1]),
            words,
            leaves,
            extras,
            on.table.view(torch.uint32),
            on.keys.view(torch.uint32),
            count,
            levels,
            shape.leaf_bits,
            SIZE=_SIZE,
        )
        out.words[:] = words.cpu().numpy().view(np.uint64).reshape(out.words.shape)
        out.leaves[:] = leaves.cpu().numpy().view(np.uint64).reshape(out.leaves.shape)
        corrected = extras.cpu().numpy().reshape(levels, count)
        out.bits[:] = np.packbits(corrected, axis=1, bitorder="little")


def _grid(count: int) -> tuple[int]:
    return (-(-count // _SIZE),)
