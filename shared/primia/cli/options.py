"""The settings of a run from the command line: a JSON file, then ``--set`` one by one.

Every field of the request can be given, by its path: ``training.schedule.kind=cosine``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from primia.errors import InvalidInput
from primia.learning.spec import describe
from primia.messages.rounds import RunRequest

Document = dict[str, Any]


def read_document(path: Path | None) -> Document:
    """The JSON object in a file; empty without one. Raises InvalidInput."""
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise InvalidInput(f"{path} is no JSON: {error}.") from None
    if not isinstance(found, dict):
        raise InvalidInput(f"{path} holds no JSON object.")
    return found


def put(document: Document, path: str, value: object) -> None:
    """Set the field at a dotted path; objects on the way are made."""
    *folders, name = path.split(".")
    place = document
    for folder in folders:
        inner = place[folder] = {} if place.get(folder) is None else place[folder]
        if not isinstance(inner, dict):
            raise InvalidInput(f"{folder} in {path} is no group of settings.")
        place = inner
    place[name] = value


def assign(document: Document, assignments: Sequence[str]) -> None:
    """``path=value`` each; the value is JSON, or else a text. Raises InvalidInput."""
    for each in assignments:
        path, equals, text = each.partition("=")
        if not equals or not path:
            raise InvalidInput(
                f"{each!r} is no setting.", hint="Write it as training.optimiser=sgd."
            )
        put(document, path.strip(), _value(text))


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def request_of(document: Mapping[str, Any]) -> RunRequest:
    """Raises InvalidInput, which names each field at fault."""
    try:
        return RunRequest.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise InvalidInput(
            f"The run's settings: {describe(error)}",
            hint="`primia rounds options` lists all settings.",
        ) from None


def described(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(path, default, description) of every field, those of groups in depth."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        group = _group(field)
        if group is None:
            default = "" if field.is_required() else json.dumps(field.default, default=str)
            yield path, default, field.description or ""
        else:
            if field.default is None:
                yield path, "null", f"none, or a group: {path}.…"
            yield from described(group, f"{path}.")


def _group(field: FieldInfo) -> type[BaseModel] | None:
    kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
    return next(
        (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None
    )
