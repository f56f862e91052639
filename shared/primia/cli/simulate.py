"""``primia simulate``: the same training in several modes, on one machine, without services."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from pydantic import ValidationError
from rich.console import Group

from primia.cli import options, output
from primia.cli.output import Format, FormatOption
from primia.errors import InvalidInput
from primia.learning.config import ServerOptimiser
from primia.learning.spec import ModelSpec, describe, task_of
from primia.messages.rounds import TrainingSettings

if TYPE_CHECKING:  # torch, for those who simulate
    from primia.evaluation.figures import Rate
    from primia.simulation.comparing import Comparison, Outcome
    from primia.simulation.modes import Plan


@output.guarded
def simulate(
    data: Annotated[Path, typer.Argument(help="class folders, or train/ and test/ with such")],
    modes: Annotated[str, typer.Option(help="of local, pooled, plain, secure")] = "plain,secure",
    sites: int = 3,
    rounds: int = 5,
    images: Annotated[int, typer.Option(help="about so many for training; 0: all")] = 0,
    architecture: str = "resnet18",
    image_size: int = 64,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="training.optimiser=sgd, server.kind=fedadam")
    ] = None,
    epsilon: Annotated[
        str, typer.Option(help="8,1: secure with differential privacy at each of these, too")
    ] = "",
    seed: int = 0,
    form: FormatOption = Format.TABLE,
) -> None:
    """Train in each mode from the same weights, and compare on test images."""
    from primia.simulation import sites as places
    from primia.simulation.comparing import compare, trials
    from primia.simulation.modes import Mode

    wanted = [each.strip() for each in modes.split(",")]
    unknown = sorted(set(wanted) - set(get_args(Mode)))
    if unknown:
        raise InvalidInput(f"There is no mode {unknown[0]!r}.", hint="local,pooled,plain,secure")
    root = data if not (data / "train").is_dir() else data / "train"
    if task_of(architecture) == "segmentation":
        raise InvalidInput(
            f"A {architecture} is for masks; simulations compare classification.",
            hint="Train it over a grid: `primia rounds start`.",
        )
    plan = plan_of(rounds, image_size, seed, settings or [])
    spec = ModelSpec.parse(
        {
            "architecture": architecture,
            "classes": places.listed(root).classes,
            "image_size": plan.training.image_size,
            "seed": seed,
        }
    )
    shares = plan.training.validation_fraction, plan.training.test_fraction
    setting = places.load(data, spec, places.Wanted(sites, images, *shares, seed))
    told = output.console().print if form is Format.TABLE else _nothing
    chosen = [mode for mode in get_args(Mode) if mode in wanted]
    todo = trials(setting, plan, chosen, epsilons(epsilon))
    found = compare(setting, todo, lambda name, done, of: told(f"{name}: round {done} of {of}"))
    output.show(document(found), form, lambda: tables(found))


def epsilons(text: str) -> list[float]:
    try:
        return [float(each) for each in text.split(",") if each.strip()]
    except ValueError:
        raise InvalidInput(f"{text!r} is no list of numbers.") from None


def _nothing(_text: str) -> None:
    pass


def plan_of(rounds: int, image_size: int, seed: int, settings: list[str]) -> Plan:
    from primia.simulation.modes import Plan

    given: dict[str, Any] = {"training": {"image_size": image_size, "seed": seed}}
    options.assign(given, settings)
    unknown = sorted(set(given) - {"training", "server"})
    if unknown:
        raise InvalidInput(
            f"A simulation has no setting {unknown[0]!r}.", hint="It has training.… and server.…."
        )
    try:
        return Plan(
            rounds,
            TrainingSettings.model_validate_json(json.dumps(given["training"])),
            ServerOptimiser.model_validate(given.get("server", {})),
        )
    except ValidationError as error:
        raise InvalidInput(f"The settings: {describe(error)}") from None


def document(found: Comparison) -> dict[str, Any]:
    return {
        "outcomes": [
            {
                "name": each.name,
                "images": each.images,
                "seconds": each.seconds,
                "figures": each.figures.model_dump(mode="json"),
            }
            for each in found.outcomes
        ],
        "pairs": [asdict(pair) for pair in found.pairs],
    }


def tables(found: Comparison) -> Group:
    columns = ("training", "images", "seconds", "accuracy", "balanced", "AUC", "MCC")
    lines = [
        (
            o.name,
            o.images,
            output.number(o.seconds, 0),
            _rate(o.figures.accuracy),
            output.number(o.figures.balanced_accuracy),
            output.number(o.figures.auc),
            _correlation(o),
        )
        for o in found.outcomes
    ]
    classes = [
        (o.name, c.label, _rate(c.sensitivity), _rate(c.specificity), _rate(c.auc))
        for o in found.outcomes
        for c in o.figures.classes
    ]
    pairs = [
        (
            f"{p.first} – {p.second}",
            p.mcnemar.first_only,
            p.mcnemar.second_only,
            output.number(p.mcnemar.p),
            output.number(p.kappa),
            output.number(p.mcc),
        )
        for p in found.pairs
    ]
    return Group(
        output.rows("On the test images, with 95 % intervals", columns, lines),
        output.rows("Classes", ("training", "class", "sensitivity", "specificity", "AUC"), classes),
        output.rows(
            "Differences",
            ("", "only the first right", "only the second", "McNemar's p", "κ", "ΔMCC"),
            pairs,
        ),
    )


def _correlation(found: Outcome) -> str:
    import numpy as np

    from primia.evaluation.measuring import correlation_interval

    low, high = correlation_interval(np.array(found.figures.confusion, dtype=np.float64))
    return f"{found.figures.mcc:.3f} ({low:.3f}–{high:.3f})"


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return "–"
    low, high = rate.interval
    return f"{rate.value:.3f} ({low:.3f}–{high:.3f})"
