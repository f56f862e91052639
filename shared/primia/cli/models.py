"""``primia models list | create | serve | download``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from primia.cli import output, profile
from primia.cli.output import Format, FormatOption
from primia.messages.inference import ServeRequest
from primia.messages.registry import NewModel

app = typer.Typer(no_args_is_help=True)


@app.command("list")
@output.guarded
def listing(form: FormatOption = Format.TABLE) -> None:
    """The models and their newest versions."""
    found = profile.load().model_owner().models()
    columns = ("model", "architecture", "classes", "size", "version", "state", "accuracy")
    lines = [
        (
            m.name,
            m.spec.architecture,
            ", ".join(m.spec.classes),
            m.spec.image_size,
            m.newest.version,
            m.newest.state,
            output.percent(m.newest.metrics.accuracy if m.newest.metrics else None),
        )
        for m in found.models
    ]
    output.show(found, form, lambda: output.rows("Models", columns, lines))


@app.command()
@output.guarded
def create(
    name: str,
    classes: Annotated[str, typer.Option(help="comma-separated, in the order of the outputs")],
    architecture: str = "resnet18",
    image_size: int = 64,
    channels: int = 3,
    seed: int = 0,
    form: FormatOption = Format.TABLE,
) -> None:
    """Register a model with freshly initialised weights."""
    owner = profile.load().model_owner()
    wanted = NewModel.model_validate(
        {
            "name": name,
            "architecture": architecture,
            "classes": [each.strip() for each in classes.split(",")],
            "image_size": image_size,
            "channels": channels,
            "seed": seed,
        }
    )
    owner.create_model(wanted)
    found = owner.wait_version(name, 1)
    output.show(found, form, lambda: f"{name} version 1 is ready ({output.size(found.bytes)}).")


@app.command()
@output.guarded
def serve(
    name: str, version: int, stock: int = 1, batch: int = 1, form: FormatOption = Format.TABLE
) -> None:
    """Compile a version for encrypted inference and offer it to the data nodes."""
    owner = profile.load().model_owner()
    owner.serve(name, version, ServeRequest(stock=stock, batch=batch))
    found = owner.wait_served(name, version)
    lines = [(s.result, s.state, s.stock, s.batch) for s in found.servings]
    columns = ("result", "state", "stock", "batch")
    output.show(found, form, lambda: output.rows(f"{name} version {version}", columns, lines))


@app.command()
@output.guarded
def download(name: str, version: int, target: Path) -> None:
    """Save the weights of a version (safetensors)."""
    profile.load().model_owner().weights(name, version, target)
    typer.echo(str(target))
