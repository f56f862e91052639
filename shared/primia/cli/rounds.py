"""``primia rounds start | options | watch | show | report | repeat | list | cancel | approve |
refuse | withdraw``"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType

from primia.cli import options, output, profile
from primia.cli.dataset import Node
from primia.cli.output import Format, FormatOption
from primia.cli.watch import watch_run
from primia.messages.rounds import RunRequest
from primia.messages.runs import RunReport

app = typer.Typer(no_args_is_help=True)


@app.command()
@output.guarded
def start(
    model: str,
    nodes: Annotated[str | None, typer.Option(help="comma-separated names")] = None,
    rounds: int | None = None,
    version: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimiser: str | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    secure: Annotated[bool | None, typer.Option(help="secure aggregation")] = None,
    threshold: int | None = None,
    config: Annotated[Path | None, typer.Option(help="a JSON file of the request")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="training.schedule.kind=cosine; see `primia rounds options`"),
    ] = None,
    watch: Annotated[bool, typer.Option(help="follow the run until it ends")] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Start a training run; it goes on by itself. What is not given has its default."""
    owner = profile.load().model_owner()
    image_size = next((m.spec.image_size for m in owner.models().models if m.name == model), 64)
    document: options.Document = {"rounds": 3, "training": {"image_size": image_size}}
    document = _merged(document, options.read_document(config))
    given = {
        "model": model,
        "nodes": None if nodes is None else [each.strip() for each in nodes.split(",")],
        "rounds": rounds,
        "version": version,
        "training.epochs": epochs,
        "training.batch_size": batch_size,
        "training.optimiser": optimiser,
        "training.learning_rate": learning_rate,
        "training.seed": seed,
        "aggregation.secure": secure,
        "aggregation.threshold": threshold,
    }
    for path, value in given.items():
        if value is not None:
            options.put(document, path, value)
    options.assign(document, settings or [])
    request = options.request_of(document)
    run = owner.start_run(request)
    if watch:
        _watched(run.id, form)
    else:
        output.show(run, form, lambda: f"Run {run.id} has started: `primia rounds watch {run.id}`")


def _merged(below: options.Document, above: options.Document) -> options.Document:
    """The fields of both, those of ``above`` where both have one; ``training`` field by field."""
    training = {**below["training"], **above.get("training", {})}
    return {**below, **above, "training": training}


@app.command("options")
@output.guarded
def listed() -> None:
    """All settings of a run, with their defaults."""
    columns = ("setting", "default", "")
    output.console().print(output.rows("Settings", columns, list(options.described(RunRequest))))


@app.command()
@output.guarded
def watch(run: str, form: FormatOption = Format.TABLE) -> None:
    """Follow a run until it ends."""
    _watched(run, form)


@app.command()
@output.guarded
def show(run: str, node: Node = None, form: FormatOption = Format.TABLE) -> None:
    """State of a run, per round and per site, and all that was proposed to the sites; with a node:
    the run as that site sees it."""
    if node is not None:
        seen = profile.load().data_node(node).run(run)
        title = " ".join([f"{seen['state']} at this site", seen["reason"], *seen["objections"]])
        output.show(seen, form, lambda: Group(title, proposed(seen["proposal"])))
        return
    found = profile.load().model_owner().run(run)
    proposal = found.proposal.model_dump(mode="json")
    output.show(found, form, lambda: Group(tables(found), proposed(proposal)))


@app.command()
@output.guarded
def report(
    run: str,
    html: Annotated[Path | None, typer.Option(help="write the page with plots here")] = None,
    json: Annotated[Path | None, typer.Option(help="write the document here")] = None,
) -> None:
    """What a run's models are worth, and all that it takes to repeat it."""
    owner = profile.load().model_owner()
    if html is not None:
        html.write_text(owner.report_page(run), encoding="utf-8")
    found = owner.report(run)
    if json is not None:
        json.write_text(found.model_dump_json(indent=2), encoding="utf-8")
    if html is None and json is None:
        output.show(found, Format.JSON, lambda: "")


@app.command()
@output.guarded
def repeat(
    document: Path,
    settings: Annotated[list[str] | None, typer.Option("--set", help="what to change")] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Start a run as the report of another one says (`primia rounds report RUN --json FILE`)."""
    try:
        request = options.read_document(document)["run"]["request"]
    except (KeyError, TypeError):
        output.fail(f"{document} is no report of a run.", status=2)
    options.assign(request, settings or [])
    run = profile.load().model_owner().start_run(options.request_of(request))
    output.show(run, form, lambda: f"Run {run.id} has started: `primia rounds watch {run.id}`")


@app.command("list")
@output.guarded
def listing(
    node: Node = None,
    state: Annotated[str | None, typer.Option(help="as a data node: pending, active …")] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """The runs, newest first; as a data node: those that it was asked to join."""
    if node is not None or state is not None:
        seen = profile.load().data_node(node).runs(state)
        output.show(seen, form, lambda: _asked(seen["runs"]))
        return
    found = profile.load().model_owner().runs()
    columns = ("run", "model", "state", "rounds", "aggregation", "started")
    lines = [
        (
            r.id,
            f"{r.model} v{r.version}",
            r.state,
            f"{r.rounds_done} of {r.rounds}",
            "secure" if r.secure else "plain",
            f"{r.created:%Y-%m-%d %H:%M}",
        )
        for r in found.runs
    ]
    output.show(found, form, lambda: output.rows("Training runs", columns, lines))


def _asked(runs: list[dict[str, Any]]) -> RenderableType:
    columns = ("run", "owner", "model", "state", "rounds", "data set", "asked", "")
    lines = [
        (
            r["id"],
            r["owner"],
            r["model"],
            r["state"],
            f"{r['rounds_done']} of {r['rounds']}",
            r["dataset"],
            r["created"][:16].replace("T", " "),
            r["reason"],
        )
        for r in runs
    ]
    return output.rows("Runs at this site", columns, lines)


@app.command()
@output.guarded
def cancel(run: str) -> None:
    """End a run; sites stop at their next batch."""
    profile.load().model_owner().cancel_run(run)


@app.command()
@output.guarded
def approve(run: str, dataset: str, node: Node = None) -> None:
    """As a data node: take part in a run with this data set."""
    profile.load().data_node(node).approve(run, dataset)


@app.command()
@output.guarded
def refuse(run: str, reason: str, node: Node = None) -> None:
    """As a data node: do not take part in a run."""
    profile.load().data_node(node).refuse(run, reason)


@app.command()
@output.guarded
def withdraw(run: str, reason: str, node: Node = None) -> None:
    """As a data node: leave a run; what earlier rounds have contributed cannot be taken back."""
    profile.load().data_node(node).withdraw(run, reason)


def _watched(run: str, form: Format) -> None:
    owner = profile.load().model_owner()
    found = watch_run(owner, run, quiet=form is Format.JSON)
    output.show(found, form, lambda: tables(found))
    if found.state != "finished":
        raise typer.Exit(1)


def proposed(proposal: Mapping[str, Any]) -> RenderableType:
    """Every field of a proposal."""
    return output.rows("Proposal", ("setting", "value"), list(_fields(proposal)))


def _fields(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _fields(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            for number, each in enumerate(value):
                yield from _fields(each, f"{prefix}{name}.{number}.")
        else:
            yield f"{prefix}{name}", "–" if value is None else str(value)


def tables(found: RunReport) -> Group:
    """The run, its rounds, and its sites in each round."""
    secure = f"secure, threshold {found.threshold}" if found.secure else "plain"
    state = f"{found.state}{': ' + found.reason if found.reason else ''}"
    title = f"Run {found.id} of {found.model} v{found.version} ({secure}) – {state}"
    columns = ("round", "site", "images", "loss", found.accuracy_is, "seconds", "up", "down", "")
    lines: list[tuple[object, ...]] = []
    summed = {site.node for site in found.sites if site.summed}
    for r in found.reports:
        lines += [
            (
                r.number,
                s.node,
                s.samples,
                "summed" if s.loss is None and s.node in summed else output.number(s.loss),
                output.percent(s.accuracy),
                output.number(s.seconds, 1),
                output.size(s.bytes_up),
                output.size(s.bytes_down),
                s.dropped,
            )
            for s in r.sites
        ]
        loss, accuracy = output.number(r.training.loss), output.percent(r.training.accuracy)
        notes = ", ".join(str(note) for note in (r.graph, r.reason) if note)
        lines.append((r.number, "all", r.training.samples, loss, accuracy, "", "", "", notes))
    result = found.final
    made = f", registered as version {found.final_version}" if found.final_version else ""
    final = (
        f"Final model on the sites' validation images: {found.accuracy_is} "
        f"{output.percent(result.accuracy)}, loss {output.number(result.loss)}{made}."
        if result
        else ""
    )
    findings = [f"{name}: {text}." for name, text in found.findings()]
    return Group(output.rows(title, columns, lines), *findings, final)
