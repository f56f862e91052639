"""The table at the end of the demonstration, and the same as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType

from primia.cli import output
from primia.demo.inference import Classified
from primia.demo.sites import Sites
from primia.demo.training import Trained
from primia.messages.runs import RoundReport, RunReport


@dataclass(frozen=True)
class Outcome:
    sites: Sites
    nodes: tuple[str, ...]
    trained: Trained
    classified: Classified
    seconds: float


def tables(outcome: Outcome) -> Group:
    parts: list[RenderableType] = [_sites(outcome), _rounds(outcome.trained)]
    parts += [_aggregation(outcome.trained), _inference(outcome.classified)]
    return Group(*(part for table in parts for part in (table, "")), _closing(outcome))


def document(outcome: Outcome) -> dict[str, Any]:
    """All figures, for a program."""
    trained, classified = outcome.trained, outcome.classified
    return {
        "images": outcome.sites.source,
        "sites": dict(zip(outcome.nodes, outcome.sites.counts, strict=True)),
        "run": trained.run.model_dump(mode="json"),
        "plain_round": trained.plain.model_dump(mode="json"),
        "secure_round": trained.first.model_dump(mode="json"),
        "plain_against_secure": trained.difference,
        "inference": {
            "images": len(classified.truth),
            "batch": classified.batch,
            "agreement": classified.agreement,
            "largest_logit_difference": classified.difference,
            "accuracy": classified.accuracy,
            "costs": [cost.model_dump(mode="json") for cost in classified.costs],
        },
        "seconds": outcome.seconds,
    }


def _sites(outcome: Outcome) -> RenderableType:
    lines = zip(outcome.nodes, outcome.sites.counts, strict=True)
    title = f"Sites ({outcome.sites.source}; no patient stands at two)"
    return output.rows(title, ("site", "images"), lines)


def _rounds(trained: Trained) -> RenderableType:
    run = trained.run
    lines = [
        (
            r.number,
            output.number(r.training.loss),
            output.percent(r.training.accuracy),
            output.percent(r.result.accuracy if r.result else None),
            output.number(_seconds(r), 1),
            output.size(_up(r.sites) / max(1, len(r.sites))),
            output.size(sum(s.bytes_down for s in r.sites) / max(1, len(r.sites))),
        )
        for r in run.reports
    ]
    columns = (
        "round",
        "loss (training)",
        "accuracy (training)",
        "accuracy after (validation)",
        "seconds",
        "up a site",
        "down a site",
    )
    title = f"{run.model}: {run.rounds} rounds of secure aggregation, threshold {run.threshold}"
    return output.rows(title, columns, lines)


def _aggregation(trained: Trained) -> RenderableType:
    lines = [
        ("plain", *_one_round(trained.plain)),
        ("secure", *_one_round(trained.first)),
        ("largest difference of the two models", f"{trained.difference:.2e}", ""),
        ("largest value in them", f"{trained.largest:.2e}", ""),
    ]
    title = "One round from the same start, plain against secure"
    return output.rows(title, ("aggregation", "seconds", "bytes up, all sites"), lines)


def _one_round(report: RunReport) -> tuple[str, str]:
    last = report.reports[0]
    return output.number(_seconds(last), 1), output.size(_up(last.sites))


def _inference(classified: Classified) -> RenderableType:
    count = len(classified.truth)
    total = classified.costs
    lines = [
        ("images", count, ""),
        ("same label as the plain model", output.percent(classified.agreement), ""),
        ("largest logit difference", f"{classified.difference:.4f}", ""),
        ("right about the patient", output.percent(classified.accuracy), ""),
        *(_cost(name, total, count) for name in ("online", "offline", "material")),
    ]
    title = f"Encrypted against plain predictions (batches of {classified.batch})"
    return output.rows(title, ("", "all images", "an image"), lines)


def _cost(part: str, costs: Sequence[Any], count: int) -> tuple[str, str, str]:
    seconds = sum(getattr(cost, f"{part}_seconds") for cost in costs)
    moved = sum(getattr(cost, f"{part}_bytes") for cost in costs)
    whole = f"{seconds:.1f} s, {output.size(moved)}"
    return part, whole, f"{seconds / count:.2f} s, {output.size(moved / count)}"


def _closing(outcome: Outcome) -> str:
    return (
        f"Done in {outcome.seconds:.0f} s. The grid stays up: `primia grid status`, "
        "`primia rounds list`, `primia docs model-owner`; `make down` stops it."
    )


def _seconds(report: RoundReport) -> float | None:
    return (report.ended - report.started).total_seconds() if report.ended else None


def _up(sites: Iterator[Any] | Sequence[Any]) -> int:
    return sum(site.bytes_up for site in sites)
