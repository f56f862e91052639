"""What every message shares: strict parsing, the version, names of things."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

VERSION = 1

# A principal, a model, a data set: short, printable, safe in a path and in a URL.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?$")]
Label = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f/\\]+$")
]
# 32 lower-case hexadecimal digits: 16 random bytes.
Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# Small binary values (keys, signatures, sealed shares) in JSON: base64url without padding.
Base64Url = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[A-Za-z0-9_-]*$")]


class Message(BaseModel):
    """Frozen, and refuses fields that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelCard(Message):
    """The public description of a model: what a node needs to build and train it."""

    name: Name
    version: int = Field(ge=1)
    architecture: Name
    classes: tuple[Label, ...] = Field(min_length=2, max_length=1000)
    channels: Literal[1, 3] = 3
    norm: Literal["batch", "group"] = "batch"
    width: int | None = Field(
        default=None, description="channels at full resolution, of a U-Net; null: of no other"
    )
    image_size: int = Field(ge=16, le=512)
    mean: float | tuple[float, ...] = Field(default=0.5, description="or one a channel")
    deviation: float | tuple[float, ...] = Field(default=0.25, description="or one a channel")
    digest: Digest = Field(description="SHA-256 of the weights file")
    program: Digest | None = Field(
        default=None, description="SHA-256 of the program, of a model that is one"
    )
    layout: Digest | None = Field(
        default=None, description="SHA-256 of the state's layout, of an external model"
    )
