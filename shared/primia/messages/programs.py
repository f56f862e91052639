"""What a site's users are told of programs, the models that owners have made themselves."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from primia.learning.programs import description, shapes
from primia.learning.programs.document import Program
from primia.messages.common import Digest, Message, Name


class ProgramDescription(Message):
    """``values``: that all steps give for one image; ``multiplications``: of its convolutions and
    fully connected layers, for one image."""

    input: tuple[int, int, int] = Field(description="channels, height, width it was exported for")
    classes: int
    operators: dict[str, int] = Field(description="how often each is applied")
    parameters: int
    buffers: int
    values: int
    multiplications: int
    mixes_images: bool = Field(description="it has BatchNorm")
    lines: tuple[str, ...] = Field(description="the layers and steps in order, with their sizes")

    @classmethod
    def of(cls, program: Program) -> ProgramDescription:
        """Raises Misfit for a program whose sizes do not fit."""
        return cls(
            input=program.input,
            classes=shapes.classes(program),
            operators=program.operators(),
            **shapes.cost(program)._asdict(),
            mixes_images=program.mixes_images,
            lines=tuple(description.lines(program)),
        )


class ProgramSummary(Message):
    """``owner``, ``model``, ``seen``: of the first run that came with it; null for a program that
    was approved before any."""

    digest: Digest = Field(description="SHA-256 of the canonical JSON")
    owner: Name | None
    model: Name | None
    seen: datetime | None
    approved: datetime | None = Field(description="null: it waits for approval")
    approved_by: Name | None
    operators: dict[str, int] = Field(default={})
    parameters: int | None = None


class ProgramList(Message):
    programs: tuple[ProgramSummary, ...]


class ProgramReport(ProgramSummary):
    description: ProgramDescription | None
    program: Program | None
