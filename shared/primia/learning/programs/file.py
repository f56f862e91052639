"""A program with its weights in one file: safetensors, with the program among its metadata."""

from __future__ import annotations

from pathlib import Path

from torch.export import ExportedProgram

from primia.errors import InvalidInput
from primia.learning.hashed import MAX_FILE_BYTES
from primia.learning.layout import Vector, read_metadata, read_state, write_state
from primia.learning.models import state_layout
from primia.learning.programs.document import Program
from primia.learning.programs.exported import program_of
from primia.learning.programs.network import Network
from primia.learning.storage import replacing


def save_program(exported: ExportedProgram, path: Path | str) -> Program:
    """Write the file that ``primia models add --program`` takes.

    ``exported``: ``torch.export.export(model, (images,), dynamic_shapes=({0: Dim("batch",
    min=2)},))``, images float32 (N, C, H, W), of a model in training or in evaluation mode. Raises
    UnsupportedOperator naming the operator.
    """
    program, vector = program_of(exported)
    with replacing(Path(path), "the program") as file:
        file.write(pack(program, vector))
    return program


def pack(program: Program, vector: Vector) -> bytes:
    return write_state(vector, state_layout(Network(program)), {"program": program.text})


def read_program(path: Path) -> tuple[Program, Vector]:
    """Raises InvalidInput for a file that holds no program or other tensors than it needs."""
    if not path.is_file():
        raise InvalidInput(f"There is no file {path.name}.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InvalidInput(f"{path.name} has more than {MAX_FILE_BYTES >> 20} MiB.")
    data = path.read_bytes()
    text = read_metadata(data).get("program")
    if not isinstance(text, str):
        raise InvalidInput(
            f"{path.name} holds no program.",
            hint="Make one with primia.learning.programs.file.save_program.",
        )
    program = Program.parse(text)
    return program, read_state(data, state_layout(Network(program)))
