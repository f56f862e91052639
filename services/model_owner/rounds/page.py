"""A run's report as one HTML page that needs nothing from elsewhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from html import escape

from primia.evaluation import plots
from primia.evaluation.figures import Figures, Rate
from primia.messages.runs import ModelFigures, RunDocument

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } caption { text-align: left; font-weight: 600 }
td, th { border-bottom: 1px solid #ccc; padding: .25rem .7rem; text-align: right }
td:first-child, th:first-child { text-align: left }
pre { background: #f4f4f4; padding: 1rem; overflow: auto } img { max-width: 100% }
"""


def page(document: RunDocument) -> str:
    run = document.run
    parts = [
        f"<h1>Training run of {escape(run.model)}</h1>",
        _facts(document),
        "<h2>Course</h2>",
        *_course(document),
        "<h2>Models</h2>",
        *_evaluation(document),
        "<h2>Configuration</h2>",
        "<p>Repeat the run with <code>primia rounds repeat REPORT.json</code>.</p>",
        f"<pre>{escape(json.dumps(run.request.model_dump(mode='json'), indent=2))}</pre>",
    ]
    title = f"Run {run.id}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


def _facts(document: RunDocument) -> str:
    run = document.run
    aggregation = f"secure, threshold {run.threshold}" if run.secure else "plain"
    made = f", version {run.final_version} ({document.chosen})" if run.final_version else ""
    facts = [
        ("Run", run.id),
        ("State", f"{run.state} {run.reason}"),
        ("Model", f"{run.model} version {run.version}{made}, {document.card.architecture}"),
        ("Sites", ", ".join(f"{site.node} ({site.samples} images)" for site in run.sites)),
        ("Figures summed, not shown", _summed(document)),
        ("Rounds", f"{run.rounds_done} of {run.rounds}, aggregation {aggregation}"),
        *run.findings(),
        ("Started", f"{run.created:%Y-%m-%d %H:%M} by {run.created_by}"),
        ("Software", ", ".join(f"{name} {text}" for name, text in document.software.items())),
    ]
    return _table("", ("", ""), facts)


def _summed(document: RunDocument) -> str:
    return ", ".join(site.node for site in document.run.sites if site.summed) or "of no site"


def _course(document: RunDocument) -> Iterable[str]:
    yield from _lost(document)
    rounds = [each for each in document.run.reports if each.phase == "done"]
    if not rounds:
        yield "<p>No round has been finished.</p>"
        return
    for name in ("loss", "accuracy"):
        lines: dict[str, list[tuple[float, float]]] = {}
        for line, kind in (
            ("training", "training"),
            ("validation, before the round", "received"),
            ("validation, after it", "result"),
        ):
            found = [(each.number, getattr(getattr(each, kind), name, None)) for each in rounds]
            lines[line] = [(float(x), float(y)) for x, y in found if y is not None]
        title = document.run.accuracy_is if name == "accuracy" else name
        yield _image(plots.curves(lines, "round", title), f"{title} over rounds")
    yield _table(
        "Rounds",
        (
            "round",
            "sites",
            "training loss",
            "validation loss",
            "error at most",
            "graph",
            "bytes up",
            "bytes down",
            "seconds",
        ),
        (
            (
                each.number,
                len([site for site in each.sites if site.dropped is None]),
                _number(each.training.loss),
                _number(each.result.loss if each.result else None),
                f"{each.quantisation_step.parameters:.1g}" if each.quantisation_step else "–",
                each.graph or "–",
                sum(site.bytes_up for site in each.sites),
                sum(site.bytes_down for site in each.sites),
                _number((each.ended - each.started).total_seconds() if each.ended else None),
            )
            for each in rounds
        ),
    )


def _lost(document: RunDocument) -> Iterable[str]:
    """Sites that were not in the sum of a round, and rounds that were given up; each with why."""
    rounds = [*document.run.reports, *document.run.evaluations]
    lines = [
        (each.number, site.node, site.dropped)
        for each in rounds
        for site in each.sites
        if site.dropped is not None
    ]
    lines += [(each.number, "all", each.reason) for each in rounds if each.phase == "abandoned"]
    if lines:
        yield _table("Left out", ("round", "site", "reason"), sorted(lines))


def _evaluation(document: RunDocument) -> Iterable[str]:
    for part, title in (("test", "Test images"), ("validation", "Validation images")):
        models = [each for each in document.models if getattr(each.overall, part) is not None]
        if not models:
            yield f"<p>{title}: none were evaluated.</p>"
            continue
        yield f"<h3>{title}</h3>"
        yield _summary(models, part)
        for each in models:
            if each.model == document.chosen:
                yield from _details(getattr(each.overall, part))
        shown = {node for each in models for node, of in each.sites.items() if getattr(of, part)}
        if shown and (len(models) > 1 or len(shown) > 1):
            yield _across(models, part, sorted(shown))


def _summary(models: Sequence[ModelFigures], part: str) -> str:
    lines = []
    for model in models:
        everywhere = {"all sites": model.overall, **model.sites}
        for place, figures in everywhere.items():
            found: Figures | None = getattr(figures, part)
            if found is not None:
                lines.append((f"{model.model}, {place}", *_line(found)))
    if any(getattr(model.overall, part).dice is not None for model in models):
        of_masks = ("model, site", "pixels", "mean Dice", "mean IoU", "pixel accuracy")
        caption = "Figures of masks; means over the classes but the background"
        return _table(caption, of_masks, lines)
    columns = ("model, site", "images", "accuracy", "balanced", "AUC", "MCC", "calibration error")
    return _table("Figures, with 95 % intervals", columns, lines)


def _line(found: Figures) -> tuple[object, ...]:
    if found.dice is not None:
        accuracy = _number(found.accuracy.value)
        return found.samples, _number(found.dice), _number(found.iou), accuracy
    return (
        found.samples,
        _rate(found.accuracy),
        _number(found.balanced_accuracy),
        _number(found.auc),
        _number(found.mcc),
        _number(found.calibration_error),
    )


def _details(found: Figures) -> Iterable[str]:
    if found.dice is not None:
        yield _table(
            "Classes",
            ("class", "pixels", "Dice", "IoU"),
            ((one.label, one.images, _number(one.dice), _number(one.iou)) for one in found.classes),
        )
        return
    yield _table(
        "Classes",
        ("class", "images", "sensitivity", "specificity", "AUC"),
        (
            (one.label, one.images, _rate(one.sensitivity), _rate(one.specificity), _rate(one.auc))
            for one in found.classes
        ),
    )
    names = [one.label for one in found.classes]
    confusion = [[float(cell) for cell in row] for row in found.confusion]
    yield _image(
        plots.matrix(confusion, names, names, "true class", "taken for", "{:.0f}"), "confusion"
    )
    roc = {one.label: one.roc for one in found.classes}
    yield _image(plots.diagonal(roc, "1 - specificity", "sensitivity"), "ROC")
    points = {"images": [(bin_.confidence, bin_.accuracy) for bin_ in found.reliability]}
    yield _image(plots.diagonal(points, "confidence", "accuracy"), "reliability")


def _across(models: Sequence[ModelFigures], part: str, sites: Sequence[str]) -> str:
    """Each site's data against each model, of the sites that show their own."""
    of_masks = any(getattr(model.overall, part).dice is not None for model in models)
    values = [
        [_worth(getattr(model.sites.get(node), part, None), of_masks) for model in models]
        for node in sites
    ]
    picture = plots.matrix(values, sites, [each.model for each in models], "site", "model")
    title = "mean Dice" if of_masks else "accuracy"
    return _image(picture, f"{title} of each model on each site's images")


def _worth(found: Figures | None, of_masks: bool) -> float | None:
    if found is None:
        return None
    return found.dice if of_masks else found.accuracy.value


def _table(caption: str, columns: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in line) + "</tr>"
        for line in lines
    )
    top = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{top}<tr>{head}</tr>{body}</table>"


def _image(png: bytes, text: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<figure><img alt="{escape(text)}" src="data:image/png;base64,{data}"></figure>'


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return "–"
    low, high = rate.interval
    return f"{rate.value:.3f} ({low:.3f} to {high:.3f})"
