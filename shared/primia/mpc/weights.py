"""The weights of one linear layer in fixed point: the model owner's secret."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, repr=False)
class LayerWeights:
    """``weight``: int32, (out, in/groups, kh, kw) or (out, in), with the layer's ``weight_bits``
    fraction bits; ``bias``: int32, (out,), at the scale of the layer's result."""

    weight: NDArray[np.int32]
    bias: NDArray[np.int32]

    def __repr__(self) -> str:
        return f"LayerWeights(<secret {self.weight.shape}>)"
