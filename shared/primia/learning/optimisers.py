"""torch's optimisers by name, and their state as tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from primia.learning.config import TrainingConfig
from primia.learning.hyperparameters import ADAPTIVE


def create_optimiser(module: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Over the module's parameters, where they lie at present."""
    parameters = [each for each in module.parameters() if each.requires_grad]
    found = config.hyperparameters
    if config.algorithm == "fedsgd":
        return torch.optim.SGD(parameters, found.learning_rate, weight_decay=found.weight_decay)
    more: dict[str, Any] = {"lr": found.learning_rate, "weight_decay": found.weight_decay}
    if config.optimiser in ADAPTIVE:
        more["betas"] = (found.momentum, found.second_moment)
    if config.optimiser in ("adam", "adamw"):
        more["amsgrad"] = config.amsgrad
    if config.optimiser == "sgd":
        more |= {"momentum": found.momentum, "nesterov": config.nesterov}
    if config.optimiser == "rmsprop":
        more |= {"momentum": found.momentum, "alpha": found.second_moment}
    if config.optimiser == "adadelta":
        more["rho"] = found.second_moment
    kinds: dict[str, type[torch.optim.Optimizer]] = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "nadam": torch.optim.NAdam,
        "radam": torch.optim.RAdam,
        "adamax": torch.optim.Adamax,
        "rmsprop": torch.optim.RMSprop,
        "adagrad": torch.optim.Adagrad,
        "adadelta": torch.optim.Adadelta,
    }
    return kinds[config.optimiser](parameters, **more)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies on the CPU, named ``parameter number.name of the moment``."""
    return {
        f"{number}.{name}": value.detach().cpu().clone().contiguous()
        for number, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Go on from what ``optimiser_tensors`` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimiser.load_state_dict(
        {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
    )
