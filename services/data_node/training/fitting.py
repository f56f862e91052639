"""Whether a run's training fits this machine, and its model this site's own code.

Imports torch: for workers only.
"""

from __future__ import annotations

import torch

from primia.chassis.context import Context
from primia.chassis.room import room
from primia.errors import LocalError
from primia.learning import bundles
from primia.learning.memory import training_bytes
from primia.messages.rounds import Proposal
from services.data_node.training.local import spec_of


class TooLittleMemory(LocalError):
    """Found before any training, so that the run's other sites lose nothing."""

    code = "too-little-memory"
    title = "The training does not fit this site's memory"
    status = 409


def check(ctx: Context, proposal: Proposal) -> None:
    """Raises TooLittleMemory, MalformedMessage for a model that cannot be built, BundleFailed or
    BundleMismatch."""
    layout = proposal.model.layout
    if layout is not None:
        folder = ctx.settings.bundles.get(layout)
        if folder is not None:  # else approval objects
            bundles.check_network(folder, layout)
    elif proposal.planned:
        _check_memory(proposal)


def _check_memory(proposal: Proposal) -> None:
    private = proposal.privacy.dp_sgd is not None
    gpu = torch.cuda.is_available()
    spec, there = spec_of(proposal, None), _memory()
    needed = training_bytes(spec, proposal.training, private=private, gpu=gpu)
    if needed > there:
        raise TooLittleMemory(
            f"It takes about {needed / 1e9:.1f} GB and there are {there / 1e9:.1f} GB.",
            hint="Smaller batches or images take less.",
        )


def _memory() -> int:
    """Bytes, of the device that would train."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved()
    return room()
