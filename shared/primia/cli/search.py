"""``primia search start | list | show | extend | cancel | plot``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Group

from primia.cli import options, output, profile
from primia.cli.output import Format, FormatOption
from primia.errors import InvalidInput
from primia.learning.spec import describe
from primia.messages.studies import StudyReport, StudyRequest

app = typer.Typer(no_args_is_help=True)


@app.command()
@output.guarded
def start(
    config: Annotated[Path, typer.Option(help="a JSON file: run, parameters, trials …")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="trials=40, run.rounds=3, sampler=random …")
    ] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Start a search; it goes on by itself."""
    document = options.read_document(config)
    options.assign(document, settings or [])
    study = profile.load().model_owner().start_study(_request(document))
    text = f"Search {study.id} has started: `primia search show {study.id}`"
    output.show(study, form, lambda: text)


@app.command("list")
@output.guarded
def listing(form: FormatOption = Format.TABLE) -> None:
    """The searches, newest first."""
    found = profile.load().model_owner().studies()
    columns = ("search", "model", "state", "trials", "best")
    lines = [
        (s.id, s.model, s.state, f"{s.done} of {s.trials}", s.best and output.number(s.best.value))
        for s in found.studies
    ]
    output.show(found, form, lambda: output.rows("Searches", columns, lines))


@app.command()
@output.guarded
def show(study: str, form: FormatOption = Format.TABLE) -> None:
    """The trials of a search, the best one, and how much each parameter matters."""
    found = profile.load().model_owner().study(study)
    output.show(found, form, lambda: tables(found))


@app.command()
@output.guarded
def extend(study: str, trials: int) -> None:
    """More trials, also for a search that has ended."""
    profile.load().model_owner().extend_study(study, trials)


@app.command()
@output.guarded
def cancel(study: str) -> None:
    """End a search and the runs of its trials."""
    profile.load().model_owner().cancel_study(study)


@app.command()
@output.guarded
def plot(study: str, file: Path, kind: str = "history") -> None:
    """Write a plot (PNG): the history of values, or the importance of the parameters."""
    file.write_bytes(profile.load().model_owner().study_plot(study, kind))


def _request(document: dict[str, Any]) -> StudyRequest:
    try:
        return StudyRequest.model_validate(document)
    except ValidationError as error:
        raise InvalidInput(f"The search: {describe(error)}") from None


def tables(found: StudyReport) -> Group:
    names = list(found.request.parameters)
    best = -1 if found.best is None else found.best.number
    lines = [
        (
            f"{t.number}{' *' if t.number == best else ''}",
            t.state,
            *(t.parameters.get(name) for name in names),
            output.number(t.value),
            t.reason,
        )
        for t in found.reports
    ]
    title = f"Search {found.id} of {found.model} – {found.state} {found.reason}"
    columns = ("trial", "state", *names, found.request.objective, "")
    shares = [(name, output.percent(share)) for name, share in found.importance.items()]
    parts = [output.rows(title, columns, lines)]
    if shares:
        parts.append(output.rows("Importance", ("parameter", "share"), shares))
    return Group(*parts)
