"""What computes the linear layers: chosen as the comparisons' kernel is, the results the same.

``gpu``: on the GPU too (``primia.ring_gpu``), which is imported when it is asked for; else what
this machine's processor does best.
"""

from __future__ import annotations

import functools

from primia.fss.kernels import KernelName
from primia.mpc.securenn.ring64 import LinearMap64, MakeMap64
from primia.ring import LinearMap, MakeMap


def linear_map(name: KernelName) -> MakeMap:
    """Over Z_2^32."""
    if name == "gpu":
        from primia.ring_gpu import GpuMap

        return GpuMap
    return LinearMap


def linear_map64(name: KernelName) -> MakeMap64:
    """Over Z_2^64, for SecureNN."""
    if name == "gpu":
        from primia.ring_gpu import GpuMap

        return functools.partial(GpuMap, bits=64)
    return LinearMap64
