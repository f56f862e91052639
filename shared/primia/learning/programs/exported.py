"""What ``torch.export.export`` gives -> a program and its weights.

For the machine of the user whose model it is: exporting runs the user's own code. Operators become
the layers they came from, so that the same program trains (batch statistics, dropout) and
evaluates, whichever the model was exported for. What a program cannot say is refused by the
operator's name; and at the end both are run on the same images and must give the same.
"""

from __future__ import annotations

import torch
from torch.export import ExportedProgram

from primia.learning.layout import Vector
from primia.learning.models import flatten
from primia.learning.programs.document import Program
from primia.learning.programs.network import Network
from primia.learning.programs.operators import HANDLERS, IGNORED
from primia.learning.programs.reader import Reader, UnsupportedOperator, image_of
from primia.learning.programs.shapes import classes

_IMAGES = 4  # compared at the end
_TOLERANCE = 1e-4


def program_of(exported: ExportedProgram) -> tuple[Program, Vector]:
    """The program, and its weights as the flat state of ``network.Network(program)``.

    Raises UnsupportedOperator, Misfit.
    """
    reader = Reader(exported, HANDLERS, IGNORED)
    program = reader.read()
    classes(program)
    network = Network(program)
    _give_weights(network, exported)
    _compare(network, exported, reader.training)
    return program, flatten(network)


def _give_weights(network: Network, exported: ExportedProgram) -> None:
    given = exported.state_dict
    with torch.no_grad():
        for name, tensor in network.state_dict(keep_vars=True).items():
            if tensor.is_floating_point():
                tensor.copy_(given[name])


def _compare(network: Network, exported: ExportedProgram, training: bool | None) -> None:
    """On drawn images, with the same dropout where the model was exported for training."""
    network.train(bool(training))
    generator = torch.Generator().manual_seed(0)
    images = torch.empty(_IMAGES, *image_of(exported)).normal_(generator=generator)
    # Running moves BatchNorm's statistics, the user's own module's among them.
    tensors = [*network.state_dict().values(), *exported.state_dict.values()]
    before = [tensor.clone() for tensor in tensors]
    found = []
    for module in (exported.module(), network):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            found.append(module(images))
    with torch.no_grad():
        for tensor, values in zip(tensors, before, strict=True):
            tensor.copy_(values)
    apart = float((found[0] - found[1]).abs().max() / found[0].abs().max().clamp(min=1e-6))
    if not apart <= _TOLERANCE:
        raise UnsupportedOperator(
            f"The program gives other scores than the model, by {apart:.1e} of the largest.",
            hint="An operator that works in place on what is used again is the likely reason.",
        )
