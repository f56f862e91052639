"""``primia infer``: an encrypted classification of image files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.console import RenderableType

from primia.cli import output, profile
from primia.cli.dataset import Node
from primia.cli.output import Format, FormatOption
from primia.cli.watch import watch_inference
from primia.errors import InvalidInput, Unavailable
from primia.messages.inference import (
    Accuracy,
    InferenceResult,
    InferenceStatus,
    Protocol,
    Result,
)


@output.guarded
def infer(
    images: list[Path],
    model: Annotated[str, typer.Option(help="a model that the owner serves")],
    version: int | None = None,
    result: Annotated[str, typer.Option(help="label or scores")] = "label",
    protocol: Annotated[str, typer.Option(help="fss, securenn (the baseline) or auto")] = "fss",
    accuracy: Annotated[str, typer.Option(help="exact, or calibrated (less material)")] = "exact",
    node: Node = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Classify images: the owner does not see them, this node does not see the model."""
    _check("result", result, get_args(Result))
    _check("protocol", protocol, get_args(Protocol))
    _check("accuracy", accuracy, get_args(Accuracy))
    client = profile.load().data_node(node)
    job = client.infer(
        images,
        model,
        version,
        cast(Result, result),
        cast(Protocol, protocol),
        cast(Accuracy, accuracy),
    )
    status = watch_inference(client, job.id, quiet=form is Format.JSON)
    if status.state != "done":
        raise Unavailable(f"The inference was not done: {status.reason or status.state}")
    found = client.result(job.id)
    output.show(document(found, status), form, lambda: table(found, status))


def _check(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise InvalidInput(f"There is no {what} {given}.", hint=f"It is {' or '.join(known)}.")


def document(found: InferenceResult, status: InferenceStatus) -> dict[str, Any]:
    """For programs: the status, whole, and the predictions."""
    return {**status.model_dump(mode="json"), **found.model_dump(mode="json")}


def table(found: InferenceResult, status: InferenceStatus) -> RenderableType:
    classes = list((found.predictions[0].scores or {}).keys())
    lines = [
        (p.image, p.label, *(output.number((p.scores or {})[name]) for name in classes))
        for p in found.predictions
    ]
    return output.rows(_title(status), ("image", "label", *classes), lines)


def _title(status: InferenceStatus) -> str:
    cost = status.cost
    moved = cost.material_bytes + cost.offline_bytes + cost.online_bytes
    lines = [
        f"{status.model} v{status.version}, {status.protocol}, {status.accuracy}: "
        f"online {cost.online_seconds:.2f} s, before it "
        f"{cost.material_seconds + cost.offline_seconds:.2f} s, {output.size(moved)}"
    ]
    if status.agreement:
        lines.append(f"Agreement with the float model: {output.agreement(status.agreement)}.")
    if status.chosen:
        lines.append(status.chosen)
    return "\n".join(lines)
