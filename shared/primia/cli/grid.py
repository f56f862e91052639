"""``primia grid up | down | status | stop | start``"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from primia.cli import output, profile
from primia.cli.output import Format, FormatOption
from primia.errors import NotFound
from primia.grid import layout, processes

app = typer.Typer(no_args_is_help=True)
DataRoot = Annotated[
    list[Path] | None,
    typer.Option("--data-root", help="a folder below which data sets may be registered"),
]


@app.command()
@output.guarded
def up(data_root: DataRoot = None, form: FormatOption = Format.TABLE) -> None:
    """Start every service that is not running; the first time, make keys and databases."""
    root = profile.grid_root()
    grid = layout.load(root) if layout.exists(root) else layout.create(root)
    roots = [path.absolute() for path in data_root or []]
    with output.console().status("starting") as status:
        processes.up(grid, roots, lambda step: status.update(f"starting: {step}"))
    _show(grid, form)


@app.command()
@output.guarded
def down(
    erase: Annotated[bool, typer.Option(help="also delete databases, models and keys")] = False,
) -> None:
    """Stop every service. What was trained stays, unless --erase."""
    root = profile.grid_root()
    if not layout.exists(root):
        output.console().print("No grid is here.")
        return
    processes.down(layout.load(root))
    if erase:
        shutil.rmtree(root)
    output.console().print("The grid is down." + (" Its files are deleted." if erase else ""))


@app.command()
@output.guarded
def status(form: FormatOption = Format.TABLE) -> None:
    """What runs, where, and with how much memory."""
    _show(layout.load(profile.grid_root()), form)


@app.command()
@output.guarded
def stop(
    member: str,
    part: Annotated[str, typer.Argument(help="api, worker or broker")],
    kill: Annotated[bool, typer.Option(help="kill at once instead of asking")] = False,
) -> None:
    """End one process, to see what the others do."""
    grid = layout.load(profile.grid_root())
    processes.stop(grid, grid.member(member), _part(part), force=kill)


@app.command()
@output.guarded
def start(member: str, part: Annotated[str, typer.Argument(help="api or worker")]) -> None:
    """Start one process again."""
    grid = layout.load(profile.grid_root())
    processes.start(grid, grid.member(member), _part(part))


def _part(part: str) -> str:
    if part not in ("broker", *processes.ROLES):
        raise NotFound(f"There is no part {part}.", hint="It is api, worker or broker.")
    return part


def _show(grid: layout.Grid, form: Format) -> None:
    found = processes.status(grid)
    urls = {member.name: member.url for member in grid.members}
    value = {
        "root": str(grid.root),
        "processes": [{**asdict(each), "url": urls[each.member]} for each in found],
    }
    lines = [
        (p.member, p.part, p.pid or "not running", output.size(p.memory), urls[p.member])
        for p in found
    ]
    columns = ("service", "process", "pid", "memory", "address")
    output.show(value, form, lambda: output.rows(f"Grid in {grid.root}", columns, lines))
