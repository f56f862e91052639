"""What each optimiser steps with where nothing is given.

torch's own defaults, but for most rates and SGD's momentum. Adam's rate is measured for federated
averaging (config.TrainingConfig); NAdam's and RMSprop's are the same, as their steps are as large
(at torch's 0.01 RMSprop hardly learns here), Adamax's twice that, as in torch. RAdam begins anew
with its own warm-up in every round that resets the moments, so it has torch's larger one. SGD's is
of use with its momentum; FedSGD takes one step a round, which has to be a large one.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

OptimiserName = Literal[
    "sgd", "adam", "adamw", "nadam", "radam", "adamax", "rmsprop", "adagrad", "adadelta"
]
# Those whose first coefficient is ``momentum``.
ADAPTIVE: frozenset[OptimiserName] = frozenset({"adam", "adamw", "nadam", "radam", "adamax"})


class Hyperparameters(NamedTuple):
    """None: the optimiser has no such coefficient."""

    learning_rate: float
    momentum: float | None
    second_moment: float | None
    weight_decay: float = 0.0

    def but(self, **given: float | None) -> Hyperparameters:
        """With the values that are given, of those that the optimiser has."""
        known = self._asdict()
        chosen = {name: value for name, value in given.items() if value is not None}
        return self._replace(**{n: v for n, v in chosen.items() if known[n] is not None})


FEDSGD = Hyperparameters(0.1, None, None)
DEFAULTS: dict[OptimiserName, Hyperparameters] = {
    "sgd": Hyperparameters(0.01, 0.9, None),
    "adam": Hyperparameters(3e-4, 0.9, 0.999),
    "adamw": Hyperparameters(3e-4, 0.9, 0.999, weight_decay=0.01),  # without it, it is Adam
    "nadam": Hyperparameters(3e-4, 0.9, 0.999),
    "radam": Hyperparameters(1e-3, 0.9, 0.999),
    "adamax": Hyperparameters(6e-4, 0.9, 0.999),
    "rmsprop": Hyperparameters(3e-4, 0.0, 0.99),
    "adagrad": Hyperparameters(0.01, None, None),
    "adadelta": Hyperparameters(1.0, None, 0.9),
}
