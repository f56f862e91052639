"""What all sessions of a model version share: its linear maps, prepared once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from primia.mpc.opening import check_weights
from primia.mpc.plan import Plan
from primia.mpc.securenn.layout import weight_mask, window
from primia.mpc.securenn.ring64 import LinearMap64, MakeMap64, Words, from_signed
from primia.mpc.weights import LayerWeights
from primia.prg import Seed
from primia.ring import bias_shape


class PreparedModel:
    """P0's weights W and biases; read-only, a secret."""

    def __init__(
        self,
        plan: Plan,
        weights: Mapping[str, LayerWeights],
        linear_map: MakeMap64 = LinearMap64,
    ) -> None:
        check_weights(plan, weights)
        self.plan = plan
        self._weights = weights
        self._maps = {
            op.layer: linear_map(weights[op.layer].weight, window(op)) for op, _ in plan.linear()
        }
        self._biases = {layer: from_signed(given.bias) for layer, given in weights.items()}

    def apply(self, layer: str, x: Words) -> Words:
        """W * x + bias."""
        y = self._maps[layer](x)
        y += self._biases[layer].reshape(bias_shape(y.ndim))
        return y

    def opening(self, mask: Seed) -> Iterator[Words]:
        """E = W - A, layer by layer."""
        for op, shape in self.plan.linear():
            yield from_signed(self._weights[op.layer].weight) - weight_mask(mask, op, shape)

    def __repr__(self) -> str:
        return "PreparedModel(<secret>)"


class PreparedOpening:
    """E by layer, as P1 has it; read-only."""

    def __init__(
        self, plan: Plan, layers: Mapping[str, Words], linear_map: MakeMap64 = LinearMap64
    ) -> None:
        self.plan = plan
        self._maps = {
            op.layer: linear_map(np.asarray(layers[op.layer]), window(op))
            for op, _ in plan.linear()
        }

    def apply(self, layer: str, x: Words) -> Words:
        """E * x."""
        return self._maps[layer](x)
