"""The report of a run: its configuration, its course, and what its models are worth."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version

from sqlalchemy.orm import Session

from primia.evaluation.counts import Counts, total
from primia.evaluation.figures import Figures
from primia.learning.spec import task_of
from primia.messages.common import ModelCard
from primia.messages.rounds import ModelEvaluation
from primia.messages.runs import ModelFigures, PartFigures, RunDocument
from services.model_owner.rounds import store, views
from services.model_owner.rounds.course import Course
from services.model_owner.rounds.tables import Run, Site

_LIBRARIES = ("primia-grid", "torch", "torchvision", "numpy")


def document(session: Session, run: Run) -> RunDocument:
    """The request in it names the version that the run started from: it can be sent again."""
    card = store.proposal_of(run).model
    found = views.report(session, run)
    request = found.request.model_copy(update={"version": run.version})
    return RunDocument(
        run=found.model_copy(update={"request": request}),
        card=card,
        chosen=Course.model_validate(run.course).chosen,
        models=tuple(_models(run, store.sites(session, run.id), card)),
        software={name: version(name) for name in _LIBRARIES}
        | {"python": platform.python_version()},
    )


def _models(run: Run, sites: Sequence[Site], card: ModelCard) -> Iterable[ModelFigures]:
    """Overall figures are over what sites show of their own and over what was summed."""
    summed = {
        name: ModelEvaluation.model_validate(given)
        for name, given in (run.evaluation or {}).items()
    }
    evaluated: dict[str, dict[str, ModelEvaluation]] = {}
    for site in sites:
        for name, given in site.evaluations.items():
            evaluated.setdefault(name, {})[site.node] = ModelEvaluation.model_validate(given)
    for name, by_site in evaluated.items():
        parts = [*by_site.values(), *([summed[name]] if name in summed else [])]
        yield ModelFigures(
            model=name,
            overall=PartFigures(
                validation=_figures(_sum(e.validation for e in parts), card),
                test=_figures(_sum(e.test for e in parts), card),
            ),
            sites=_each(by_site, card),
        )


def _each(by_site: Mapping[str, ModelEvaluation], card: ModelCard) -> dict[str, PartFigures]:
    return {
        node: PartFigures(
            validation=_figures(found.validation, card), test=_figures(found.test, card)
        )
        for node, found in by_site.items()
    }


def _sum(parts: Iterable[Counts | None]) -> Counts | None:
    return total(part for part in parts if part is not None)


def _figures(counts: Counts | None, card: ModelCard) -> Figures | None:
    from primia.evaluation.measuring import figures  # statistics: only when a report is asked for

    if counts is None:
        return None
    masks = task_of(card.architecture) == "segmentation"
    return figures(counts, card.classes, masks=masks)
