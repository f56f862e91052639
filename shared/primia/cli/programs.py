"""``primia programs list | show | approve | revoke``"""

from __future__ import annotations

from pathlib import Path

import typer
from rich.text import Text

from primia.cli import output, profile
from primia.cli.dataset import Node
from primia.cli.output import Format, FormatOption
from primia.messages.programs import ProgramDescription

app = typer.Typer(no_args_is_help=True)


@app.command("list")
@output.guarded
def listing(node: Node = None, form: FormatOption = Format.TABLE) -> None:
    """The programs that a data node knows; those that wait for approval come first."""
    found = profile.load().data_node(node).programs()
    columns = ("program (SHA-256)", "owner", "model", "parameters", "approved", "by")
    lines = [
        (p.digest, p.owner, p.model, p.parameters, p.approved or "waits", p.approved_by)
        for p in found.programs
    ]
    output.show(found, form, lambda: output.rows("Programs", columns, lines))


@app.command()
@output.guarded
def show(program: str, node: Node = None, form: FormatOption = Format.TABLE) -> None:
    """What a program does: of a file, or of one that a data node was sent, by its SHA-256."""
    if Path(program).is_file():
        from primia.learning.programs.file import read_program  # torch takes seconds to load

        read, _ = read_program(Path(program))
        digest, found = read.digest, ProgramDescription.of(read)
    else:
        report = profile.load().data_node(node).program(program)
        if report.description is None:
            typer.echo(f"{program} is approved; no run has come with it yet.")
            return
        digest, found = program, report.description
    output.show(found, form, lambda: _text(digest, found))


def _text(digest: str, found: ProgramDescription) -> Text:
    used = ", ".join(f"{count} {name}" for name, count in found.operators.items())
    head = (
        f"Program {digest}\n"
        f"{found.parameters:,} parameters, {found.buffers:,} buffers; for one image "
        f"{found.multiplications:,} multiplications and {found.values:,} values\n"
        f"Operators: {used}\n"
    )
    return Text(head + "\n".join(found.lines))


@app.command()
@output.guarded
def approve(digest: str, node: Node = None) -> None:
    """Let runs with exactly this program train at a data node."""
    found = profile.load().data_node(node).approve_program(digest)
    typer.echo(f"{digest} is approved, by {found.approved_by} on {found.approved}.")


@app.command()
@output.guarded
def revoke(digest: str, node: Node = None) -> None:
    """Take an approval back; runs that use the program fail at the node's next round."""
    profile.load().data_node(node).revoke_program(digest)
    typer.echo(f"{digest} is not approved any more.")
