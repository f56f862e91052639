"""``primia models list | create | add | import | calibrate | serve | download``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer

from primia.cli import output, profile
from primia.cli.downloads import download_once
from primia.cli.output import Format, FormatOption
from primia.errors import InvalidInput
from primia.learning import images
from primia.learning.calibration import MAX_IMAGES, pack
from primia.learning.layout import write_state
from primia.messages.inference import Accuracy, ServeRequest
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
    width: Annotated[int, typer.Option(help="of a U-Net: channels at full resolution")] = 32,
    norm: Annotated[
        str | None, typer.Option(help="batch, or group (differential privacy needs it)")
    ] = None,
    mean: Annotated[str | None, typer.Option(help="of pixels: 0.5, or 0.48,0.45,0.4")] = None,
    std: Annotated[str | None, typer.Option(help="likewise, their deviation")] = None,
    description: str = "",
    form: FormatOption = Format.TABLE,
) -> None:
    """Register a model with freshly initialised weights."""
    given = {"norm": norm, "mean": _channels(mean), "std": _channels(std)}
    owner = profile.load().model_owner()
    wanted = NewModel.model_validate(
        {
            **{field: value for field, value in given.items() if value is not None},
            "name": name,
            "description": description,
            "architecture": architecture,
            "classes": [each.strip() for each in classes.split(",")],
            "image_size": image_size,
            "channels": channels,
            "seed": seed,
            "width": width,
        }
    )
    owner.create_model(wanted)
    found = owner.wait_version(name, 1)
    output.show(found, form, lambda: f"{name} version 1 is ready ({output.size(found.bytes)}).")


def _channels(text: str | None) -> float | list[float] | None:
    """One number for all channels, or one for each."""
    if text is None:
        return None
    try:
        found = [float(each) for each in text.split(",")]
    except ValueError:
        raise InvalidInput(f"{text!r} is no number, and no list of them.") from None
    return found[0] if len(found) == 1 else found


@app.command()
@output.guarded
def add(
    name: str,
    classes: Annotated[str, typer.Option(help="comma-separated, in the order of the outputs")],
    program: Annotated[
        Path | None, typer.Option(help="a file of learning.programs.file.save_program")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="a MONAI bundle's folder; its code runs here")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="default: it was exported for")] = None,
    seed: Annotated[int, typer.Option(help="of the weights of version 1")] = 0,
    form: FormatOption = Format.TABLE,
) -> None:
    """Register a model of your own; version 2 has its weights (version 1: drawn ones, or zeros).

    A program has to be approved by its hash at every site. A bundle stays where it is: each site
    enables its own copy for the layout of the model's state (PRIMIA_BUNDLES).
    """
    if (program is None) == (bundle is None):
        raise InvalidInput("Give either --program or --bundle.")
    chosen = _program(program) if program else _bundle(bundle or Path())
    owner = profile.load().model_owner()
    size = {} if image_size is None else {"image_size": image_size}
    labels = [each.strip() for each in classes.split(",")]
    fields = {"name": name, "classes": labels, "seed": seed, **chosen.fields, **size}
    owner.create_model(NewModel.model_validate(fields))
    owner.wait_version(name, 1)
    made = owner.upload(name, chosen.weights, parent=1)
    version = owner.wait_version(name, made.version)
    told = f"{name} version {version.version} is ready: {chosen.known_by}"
    output.show(version, form, lambda: told)


class _Own(NamedTuple):
    fields: dict[str, object]
    weights: bytes
    known_by: str


def _program(file: Path) -> _Own:
    from primia.learning.programs.file import pack, read_program  # torch takes seconds to load

    found, vector = read_program(file)
    fields: dict[str, object] = {"architecture": "program", "program": found}
    fields |= {"channels": found.input[0], "image_size": found.input[1]}
    return _Own(fields, pack(found, vector), f"program {found.digest}")


def _bundle(folder: Path) -> _Own:
    from primia.learning.bundles import read_network  # torch and monai, as above

    layout, vector = read_network(folder)
    tensors = [{"name": s.name, "shape": s.shape, "group": s.group} for s in layout.slots]
    fields: dict[str, object] = {"architecture": "external", "layout": tensors}
    return _Own(fields, write_state(vector, layout), f"layout {layout.digest}")


@app.command("import")
@output.guarded
def import_weights(
    name: str,
    file: Annotated[
        Path | None, typer.Argument(help="torchvision's names; .pth, safetensors")
    ] = None,
    imagenet: Annotated[bool, typer.Option(help="download torchvision's ImageNet weights")] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Give a model weights that others have trained, as its next version.

    The last layer keeps the model's own weights unless it has as many classes.
    """
    from primia.learning.pretrained import imagenet_url  # torch takes seconds to load

    if (file is None) != imagenet:
        raise InvalidInput("Give either a file or --imagenet.")
    owner = profile.load().model_owner()
    path = file or download_once(imagenet_url(owner.model(name).spec.architecture))
    made = owner.import_weights(name, path)
    found = owner.wait_version(name, made.version)
    output.show(found, form, lambda: f"{name} version {found.version} has {path.name}'s weights.")


@app.command()
@output.guarded
def calibrate(
    name: str,
    version: int,
    folder: Annotated[Path, typer.Argument(help="images as the model will see them")],
    count: Annotated[int, typer.Option(min=1, max=MAX_IMAGES, help="images to use")] = 32,
) -> None:
    """Measure a version's values on your images when it is compiled (before: serve)."""
    owner = profile.load().model_owner()
    spec = owner.model(name).spec
    size = owner.version(name, version).image_size
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in images.SUFFIXES)
    if not files:
        raise InvalidInput(f"There are no images in {folder}.")
    chosen = files[:: -(-len(files) // count)]
    pixels = np.stack([images.load(file, size, spec.channels) for file in chosen])
    owner.calibrate(name, version, pack(pixels))
    typer.echo(f"{len(pixels)} images will be used when {name} version {version} is compiled.")


@app.command()
@output.guarded
def serve(
    name: str,
    version: int,
    stock: int = 1,
    batch: int = 1,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="also with narrow windows (after calibrate)")
    ] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Compile a version for encrypted inference and offer it to the data nodes."""
    owner = profile.load().model_owner()
    accuracies: tuple[Accuracy, ...] = ("exact", "calibrated") if calibrated else ("exact",)
    owner.serve(name, version, ServeRequest(stock=stock, batch=batch, accuracies=accuracies))
    found = owner.wait_served(name, version)
    lines = [
        (s.result, s.accuracy, s.state, s.stock, s.batch, output.agreement(s.agreement))
        for s in found.servings
    ]
    columns = ("result", "accuracy", "state", "stock", "batch", "agreement with the float model")
    output.show(found, form, lambda: output.rows(f"{name} version {version}", columns, lines))


@app.command()
@output.guarded
def download(name: str, version: int, target: Path) -> None:
    """Save the weights of a version (safetensors)."""
    profile.load().model_owner().weights(name, version, target)
    typer.echo(str(target))
