"""How a run stands: the best model so far, and whether it gets any better; no I/O.

Both go by validation images alone: the model that a round starts from is measured there by the
round's sites, weighted by their images. Test images have no part in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from primia.learning.config import Measured, Stopping
from primia.learning.stopper import Standing
from primia.messages.common import Message
from primia.messages.rounds import ModelEvaluation, RunRequest, Scores, Selection
from services.model_owner.rounds.measures import Measure, weighted

LAST, BEST = "last", "best"


class Model(Message):
    """Weights of a run below the state directory, or of a version in the registry."""

    name: str
    path: str
    digest: str
    bytes: int


class Course(Message):
    """``waited`` rounds since ``reached``, the best measure for stopping; ``best``: the model whose
    measure for selection, ``value``, is the best so far."""

    reached: float | None = None
    waited: int = 0
    stopped: bool = False
    best: Model | None = None
    value: float | None = None
    chosen: str = LAST

    def after(self, model: Model, received: Scores, request: RunRequest) -> Self:
        """One more model has been measured."""
        return self._stopping(received, request.stopping)._selecting(
            model, received, request.selection
        )

    def _stopping(self, received: Scores, rule: Stopping | None) -> Self:
        value = None if rule is None else measure(received, rule.measure)
        if rule is None or value is None:
            return self
        standing = Standing(self.reached, self.waited, self.stopped).after(value, rule)
        return self.model_copy(
            update={
                "reached": standing.best,
                "waited": standing.waited,
                "stopped": standing.stopped,
            }
        )

    def _selecting(self, model: Model, received: Scores, selection: Selection) -> Self:
        wanted = measure_of(selection)
        value = None if wanted is None else measure(received, wanted)
        if wanted is None or value is None or not _better(value, self.value, wanted):
            return self
        return self.model_copy(update={"best": model, "value": value})


def measure_of(selection: Selection) -> Measured | None:
    if selection == "last":
        return None
    return "loss" if selection == "best_loss" else "accuracy"


def measure(scores: Scores, wanted: Measured) -> float | None:
    if not scores.samples:
        return None
    return scores.loss if wanted == "loss" else scores.accuracy


def choose(evaluations: Iterable[dict[str, ModelEvaluation]], selection: Selection) -> str:
    """``last`` or ``best``: whichever is better at the sites that evaluated both; the last one
    where they are the same, or where nothing was measured."""
    wanted = measure_of(selection)
    both = [site for site in evaluations if LAST in site and BEST in site]
    if wanted is None:
        return LAST
    values = {name: measure(_mean(site[name].scores for site in both), wanted)
              for name in (LAST, BEST)}  # fmt: skip
    last, best = values[LAST], values[BEST]
    if best is None:
        return LAST
    return BEST if last is None or _better(best, last, wanted) else LAST


def _better(value: float, than: float | None, wanted: Measured) -> bool:
    return Stopping(measure=wanted).better(value, than)


def _mean(scores: Iterable[Scores]) -> Scores:
    found = weighted(Measure(each.samples, each.loss, each.accuracy) for each in scores)
    return Scores(samples=found.samples, loss=found.loss, accuracy=found.accuracy)
