"""What a user hands in: image files in memory, or images of a registered data set, as pixels."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from primia.chassis.context import Context
from primia.errors import InvalidInput, TooLarge
from primia.learning.datasets import safe_path
from primia.learning.images import decode, read_bytes
from primia.learning.spec import describe
from primia.messages.common import Message, ModelCard, Name
from primia.messages.inference import MAX_BATCH, Accuracy, InferenceRequest, Protocol, Result
from services.data_node.datasets import store as datasets

_MAX_NAME = 128
# A whole request may be this many times the largest image.
_REQUEST_IMAGES = 4


@dataclass(frozen=True, repr=False)
class Picture:
    """A file's name (without folders) and bytes."""

    name: str
    data: bytes


class Wanted(Message):
    """The fields that both kinds of request share."""

    model: Name
    version: int | None = Field(default=None, ge=1)
    result: Result = "label"
    protocol: Protocol = "fss"
    accuracy: Accuracy = "exact"


@dataclass(frozen=True)
class Asked:
    wanted: Wanted
    pictures: tuple[Picture, ...]


class _InMemory(MultiPartParser):
    """Starlette spools larger files to an unsealed temporary file; images stay in memory here."""

    def __init__(self, *given: Any, limit: int, **named: Any) -> None:
        super().__init__(*given, **named)
        self.spool_max_size = limit


async def read_upload(request: Request, max_image_bytes: int, max_batch: int) -> Asked:
    """A multipart form: ``model``, ``version``, ``result``, ``protocol``, ``accuracy``;
    ``images``, one or more.

    Raises TooLarge while it is read, InvalidInput naming the field at fault.
    """
    limit = _REQUEST_IMAGES * max_image_bytes
    parser = _InMemory(
        request.headers,
        _bounded(request, limit),
        limit=limit,
        max_files=min(max_batch, MAX_BATCH),
        max_fields=len(Wanted.model_fields),
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidInput(f"The form does not parse: {error.message}") from None
    fields: dict[str, str] = {}
    pictures = []
    for key, value in form.multi_items():
        if isinstance(value, UploadFile):
            pictures.append(await _picture(key, value, max_image_bytes))
        elif key in fields:
            raise InvalidInput(f"The field {key!r} is given twice.")
        else:
            fields[key] = value
    if not pictures:
        raise InvalidInput("No image was sent.", hint="Send image files in the field 'images'.")
    return Asked(_wanted(fields), tuple(pictures))


async def _bounded(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    seen = 0
    async for piece in request.stream():
        seen += len(piece)
        if seen > limit:
            raise TooLarge(f"The images together are over the limit of {limit} bytes.")
        yield piece


async def _picture(key: str, value: UploadFile, limit: int) -> Picture:
    name = _plain(value.filename)
    if key != "images":
        raise InvalidInput(f"There is no file field {key!r}.", hint="Use the field 'images'.")
    data = await value.read()
    await value.close()
    if len(data) > limit:
        raise TooLarge(f"{name} has {len(data)} bytes; {limit} are accepted.")
    return Picture(name, data)


def _plain(name: str | None) -> str:
    last = (name or "image").replace("\\", "/").rpartition("/")[2]
    printable = "".join(letter for letter in last if letter.isprintable())
    return printable[-_MAX_NAME:] or "image"


def _wanted(fields: dict[str, str]) -> Wanted:
    try:
        return Wanted.model_validate(fields)
    except ValidationError as error:
        raise InvalidInput(f"The form is not valid: {describe(error)}.") from None


def read_json(body: bytes) -> InferenceRequest:
    try:
        return InferenceRequest.model_validate_json(body)
    except ValidationError as error:
        raise InvalidInput(f"The request is not valid: {describe(error)}.") from None


def from_dataset(ctx: Context, asked: InferenceRequest) -> Asked:
    """The registered images, by their paths in the data set's manifest."""
    if len(asked.images) > ctx.settings.max_batch:
        raise InvalidInput(
            f"{len(asked.images)} images are too many for one inference.",
            hint=f"This node takes {ctx.settings.max_batch} at a time (PRIMIA_MAX_BATCH).",
        )
    with ctx.db.reading() as session:
        row = datasets.find_ready(session, asked.dataset)
        known = {entry.path for entry in datasets.manifest(session, row).entries}
    place = Path(row.place)
    root = place.parent if row.kind == "csv" else place
    pictures = []
    for path in asked.images:
        if path not in known:
            raise InvalidInput(f"The data set {row.name} has no image {path!r}.")
        pictures.append(Picture(path, read_bytes(safe_path(root, path))))
    shared = {name: getattr(asked, name) for name in Wanted.model_fields}
    return Asked(Wanted(**shared), tuple(pictures))


def pixels(pictures: tuple[Picture, ...], card: ModelCard) -> NDArray[np.uint8]:
    """uint8 (N, C, H, W), exactly as in training. Raises ImageRejected naming the file."""
    decoded = [decode(p.data, card.image_size, card.channels, p.name) for p in pictures]
    return np.stack(decoded)
