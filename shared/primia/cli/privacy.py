"""``primia privacy show``"""

from __future__ import annotations

from typing import Any

import typer

from primia.cli import output, profile
from primia.cli.dataset import Node
from primia.cli.output import Format, FormatOption

app = typer.Typer(no_args_is_help=True)


@app.callback()
def privacy() -> None:
    """The privacy ledger of a data node."""


@app.command()
@output.guarded
def show(node: Node = None, form: FormatOption = Format.TABLE) -> None:
    """What training has cost the data sets of a node, by owner and run."""
    found = profile.load().data_node(node).privacy()
    columns = ("owner", "data set", "run", "rounds", "steps", "ε", "limit")
    lines = [line for account in found["accounts"] for line in _lines(account)]
    title = "Privacy spent"
    output.show(found, form, lambda: output.rows(title, columns, lines))


def _lines(account: dict[str, Any]) -> list[tuple[object, ...]]:
    who = account["owner"], account["dataset"]
    lines: list[tuple[object, ...]] = [
        (*who, run["run"], run["rounds"], run["steps"], output.number(run["epsilon"]), "")
        for run in account["runs"]
    ]
    unprotected = account["unprotected"]
    rounds = f"{unprotected} without noise" if unprotected else ""
    limit = output.number(account["limit"])
    return [*lines, (*who, "all", rounds, "", output.number(account["epsilon"]), limit)]
