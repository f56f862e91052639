"""The rules of the registry: the states of a version, and what a version's successor inherits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from primia.errors import Conflict

State = Literal["preparing", "ready", "failed"]
Source = Literal["initialised", "uploaded", "trained"]

TRANSITIONS: Mapping[State, frozenset[State]] = {
    "preparing": frozenset({"ready", "failed"}),
    "ready": frozenset(),
    "failed": frozenset(),
}

# A safetensors header has some 150 bytes a tensor; the largest models here have under 300 tensors.
HEADER_BYTES = 1 << 20


def move(present: State, wanted: State) -> State:
    if wanted not in TRANSITIONS[present]:
        raise Conflict(f"A version that is {present} cannot become {wanted}.")
    return wanted


@dataclass(frozen=True, slots=True)
class Size:
    """Values of a model's state: trained parameters, and floating-point buffers."""

    parameters: int
    buffers: int

    @property
    def values(self) -> int:
        return self.parameters + self.buffers

    @property
    def weights_limit(self) -> int:
        """Bytes that a weights file of this model has at most."""
        return 4 * self.values + HEADER_BYTES
