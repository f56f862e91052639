"""``primia demo``: bring the grid up, train a federation securely, answer encrypted inferences."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from primia.cli import output, profile
from primia.cli.output import Format, FormatOption
from primia.client import ModelOwner
from primia.grid import layout, processes
from primia.messages.rounds import TrainingSettings

_SEED = 20


@output.guarded
def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            envvar="PRIMIA_DEMO_DATA",
            help="a folder of images by class (or with such folders train and test)",
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=12, help="images a site, at most")] = 300,
    rounds: Annotated[int, typer.Option(min=1, max=100)] = 8,
    tests: Annotated[int, typer.Option(min=3, max=48, help="images to classify encrypted")] = 12,
    image_size: Annotated[int, typer.Option(min=32, max=224)] = 64,
    form: FormatOption = Format.TABLE,
) -> None:
    """The whole mission at small scale, with real processes; ends with a table."""
    # Kept out of the other commands: these load numpy and Pillow.
    from primia.demo import inference, report, sites, training

    started = time.monotonic()
    terminal = output.console()
    root = profile.grid_root()
    grid = layout.load(root) if layout.exists(root) else layout.create(root)
    with terminal.status("Starting") as status:
        processes.up(grid, (), lambda step: status.update(f"Starting the grid: {step}"))
        status.update("Preparing the images")
        found = sites.prepare(grid, data, images, tests, _SEED)
        operator = grid.operator()
        status.update("Each site checks its images")
        training.register_images(grid, operator, found, found.folders[0].name)
    member = grid.member(layout.OWNER)
    owner = ModelOwner(operator, member.name, member.url)
    settings = TrainingSettings(image_size=image_size, epochs=1, seed=_SEED)
    trained = training.train(grid, owner, found, settings, rounds)
    version = trained.run.final_version or 1
    classified = inference.classify(grid, operator, owner, found, trained.model, version)
    seconds = time.monotonic() - started
    names = tuple(node.name for node in grid.nodes)
    outcome = report.Outcome(found, names, trained, classified, seconds)
    output.show(report.document(outcome), form, lambda: report.tables(outcome))
