"""``primia nodes list | enrol | remove``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from primia.chassis.identity import Principal
from primia.cli import options, output, profile
from primia.cli.output import Format, FormatOption
from primia.errors import InvalidInput
from primia.messages.registry import NewNode

app = typer.Typer(no_args_is_help=True)


@app.command("list")
@output.guarded
def listing(form: FormatOption = Format.TABLE) -> None:
    """The data nodes that the model owner knows, and what they are doing."""
    found = profile.load().model_owner().nodes()
    lines = [
        (
            n.name,
            f"{n.last_seen:%Y-%m-%d %H:%M:%S}" if n.last_seen else "never",
            n.run,
            n.public_key,
        )
        for n in found.nodes
    ]
    columns = ("node", "last seen", "takes part in", "public key")
    output.show(found, form, lambda: output.rows("Data nodes", columns, lines))


@app.command()
@output.guarded
def enrol(
    enrolment: Annotated[Path, typer.Argument(help="what `primia identity create` printed there")],
) -> None:
    """Let a data node take part in runs, under the key that its operator has handed over."""
    principal = Principal.model_validate(options.read_document(enrolment))
    if principal.role != "data_node":
        raise InvalidInput(f"{principal.name} is a {principal.role}, not a data node.")
    node = NewNode(name=principal.name, public_key=principal.public_key)
    typer.echo(f"{profile.load().model_owner().enrol_node(node).name} is enrolled.")


@app.command()
@output.guarded
def remove(name: str) -> None:
    """Refuse a data node from now on; not while it takes part in a run."""
    profile.load().model_owner().remove_node(name)
