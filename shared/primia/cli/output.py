"""Tables for people, JSON for programs, one line for an error."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from primia.errors import PrimiaError
from primia.messages.inference import Agreement

P = ParamSpec("P")
R = TypeVar("R")


class Format(enum.StrEnum):
    TABLE = "table"
    JSON = "json"


FormatOption = Annotated[
    Format, typer.Option("--format", help="table for people, json for programs")
]


def console() -> Console:
    return Console()


def show(value: BaseModel | Any, form: Format, table: Callable[[], RenderableType]) -> None:
    """Print the value as JSON, or the table made of it."""
    if form is Format.JSON:
        document = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        console().print(table())


def rows(title: str, columns: Sequence[str], lines: Iterable[Sequence[object]]) -> RenderableType:
    # A table's own title wraps at the table's width.
    table = Table(header_style="bold")
    for column in columns:
        table.add_column(column)
    for line in lines:
        table.add_row(*("" if cell is None else escape(str(cell)) for cell in line))
    return Group(Text(title, style="italic"), table)


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """An error becomes one line on standard error and the exit status 1 (2 for wrong input)."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except PrimiaError as error:
            fail(str(error))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            fail(f"{where or 'input'}: {first['msg'].removeprefix('Value error, ')}", status=2)
        except KeyboardInterrupt:
            fail("Stopped.", status=130)

    return run


def fail(text: str, status: int = 1) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(
        f"[red]primia:[/red] {escape(' '.join(text.split()))}"
    )
    raise typer.Exit(status)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def size(count: float | None) -> str:
    """Bytes in the unit a person would choose."""
    if count is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def agreement(found: Agreement | None) -> str:
    """With the float model, on images of the owner's."""
    if found is None:
        return "not measured"
    return (
        f"{found.same_labels:.1%} of {found.images} labels, logits within "
        f"{found.largest_difference:.4f}"
    )
