"""``primia dataset add | draw | list | show | remove``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from primia.cli import output, profile
from primia.cli.output import Format, FormatOption

app = typer.Typer(no_args_is_help=True)
Node = Annotated[str | None, typer.Option("--node", help="the data node, where several are known")]


@app.command()
@output.guarded
def add(
    name: str,
    place: Annotated[
        Path, typer.Argument(help="a folder of class folders or of images and masks, or a CSV")
    ],
    node: Node = None,
    masks: Annotated[
        bool, typer.Option("--masks", help="for segmentation: a folder with images and masks")
    ] = False,
    skip_bad: Annotated[bool, typer.Option(help="leave bad files out, not reject all")] = False,
    split: Annotated[
        str | None, typer.Option(help="shares that validate and test in every run: 0.2,0.1")
    ] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Register a data set and check it file by file."""
    client = profile.load().data_node(node)
    key = "csv" if place.suffix.lower() == ".csv" else "path"
    request: dict[str, Any] = {"name": name, key: str(place.absolute())}
    if masks:
        request["task"] = "segmentation"
    if skip_bad:
        request["bad_files"] = "skip"
    if split is not None:
        request["split"] = _shares(split)
    client.add_dataset(request)
    found = client.wait_dataset(name)
    problems = client.dataset_problems(name)["problems"]
    output.show({**found, "problems": problems}, form, lambda: _table(found, problems))
    if found["state"] == "rejected":
        raise typer.Exit(1)


@app.command()
@output.guarded
def draw(
    folder: Annotated[Path, typer.Argument(help="a new folder")],
    images: Annotated[int, typer.Option(help="of each of three classes")] = 20,
    patients: Annotated[int, typer.Option(help="of each class")] = 10,
    size: Annotated[int, typer.Option(help="pixels a side")] = 128,
    seed: int = 0,
    masks: Annotated[
        bool, typer.Option("--masks", help="for segmentation: images with masks of the lungs")
    ] = False,
) -> None:
    """Draw radiograph-like images, for trials without patients' images."""
    from primia.learning import synthetic  # numerics: no other command needs them

    if folder.exists():
        output.fail(f"{folder} is there already: name a new folder.", status=2)
    write = synthetic.draw_masks if masks else synthetic.draw_dataset
    typer.echo(f"{write(folder, images, patients, seed, size)} images in {folder}.")


@app.command("list")
@output.guarded
def listing(node: Node = None, form: FormatOption = Format.TABLE) -> None:
    """The data sets of a node."""
    found = profile.load().data_node(node).datasets()
    lines = [(d["name"], d["state"], d["images"], d["patients"]) for d in found["datasets"]]
    columns = ("data set", "state", "images", "patients")
    output.show(found, form, lambda: output.rows("Data sets", columns, lines))


@app.command()
@output.guarded
def show(name: str, node: Node = None, form: FormatOption = Format.TABLE) -> None:
    """Counts of a data set, and what is wrong with it."""
    client = profile.load().data_node(node)
    found, problems = client.dataset(name), client.dataset_problems(name)["problems"]
    output.show({**found, "problems": problems}, form, lambda: _table(found, problems))


@app.command()
@output.guarded
def remove(name: str, node: Node = None) -> None:
    """Forget a data set; its files stay."""
    profile.load().data_node(node).remove_dataset(name)


def _shares(text: str) -> dict[str, float]:
    try:
        validation, test = (float(each) for each in text.split(","))
    except ValueError:
        output.fail(f"{text!r} is no split: give two shares, 0.2,0.1.", status=2)
    return {"validation": validation, "test": test}


def _table(found: dict[str, Any], problems: list[dict[str, Any]]) -> Any:
    lines: list[tuple[object, ...]] = [
        ("state", found["state"]),
        ("images", found["images"]),
        ("patients", found["patients"]),
        *((f"class {label}", count) for label, count in found["classes"].items()),
    ]
    if found.get("look"):
        look = found["look"]
        small, large = (" x ".join(map(str, look[each])) for each in ("smallest", "largest"))
        lines += [("in colour", look["colour"]), ("pixels", f"{small} to {large}")]
    if found["split"]:
        lines.append(("split", "{validation:g} validation, {test:g} test".format(**found["split"])))
    if found["reason"]:
        lines.append(("reason", found["reason"]))
    lines += [(p["file"] or "data set", f"{p['severity']}: {p['reason']}") for p in problems]
    return output.rows(found["name"], ("", ""), lines)
