"""Whether a run's training fits this machine. Imports torch: for workers only."""

from __future__ import annotations

import psutil
import torch

from primia.errors import LocalError
from primia.learning.memory import training_bytes
from primia.messages.rounds import Proposal
from services.data_node.training.local import spec_of


class TooLittleMemory(LocalError):
    """Found before any training, so that the run's other sites lose nothing."""

    code = "too-little-memory"
    title = "The training does not fit this site's memory"
    status = 409


def check_memory(proposal: Proposal) -> None:
    """Raises TooLittleMemory, or MalformedMessage for a model that cannot be built."""
    if proposal.planned == 0 or proposal.model.layout is not None:
        return  # nothing to train, or by the site's own code
    spec = spec_of(proposal, None)
    needed, there = training_bytes(spec, proposal.training), _memory()
    if needed > there:
        raise TooLittleMemory(
            f"It takes about {needed / 1e9:.1f} GB and there are {there / 1e9:.1f} GB.",
            hint="Smaller batches or images take less.",
        )


def _memory() -> int:
    """Of the device that would train, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return psutil.virtual_memory().total
