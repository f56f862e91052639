"""What a site carries from one round of its training to the next: the optimiser's moments and how
early stopping stands. It never leaves the site."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from primia.errors import LocalError
from primia.learning.stopper import Standing

_KEY = "standing"


class DamagedState(LocalError):
    """A file of carried state that does not read back."""

    code = "training-state-damaged"
    title = "State of local training damaged"


@dataclass(frozen=True)
class Carried:
    """``optimiser``: optimisers.optimiser_tensors, empty where the state is not kept."""

    optimiser: dict[str, Tensor] = field(default_factory=dict)
    standing: Standing = field(default_factory=Standing)

    def to_bytes(self) -> bytes:
        """safetensors"""
        return save(self.optimiser, metadata={_KEY: json.dumps(self.standing.as_dict())})

    @classmethod
    def from_bytes(cls, data: bytes) -> Carried:
        try:
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])
            standing = Standing(**json.loads(header["__metadata__"][_KEY]))
            return cls(load(data), standing)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise DamagedState(f"It does not read back ({type(error).__name__}).") from None
