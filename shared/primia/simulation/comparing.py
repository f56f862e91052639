"""What each mode of training is worth on the same test images."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from primia.errors import InvalidInput
from primia.evaluation.comparison import McNemar, compare_classifiers, kappa
from primia.evaluation.counts import count
from primia.evaluation.figures import Figures
from primia.evaluation.measuring import figures
from primia.learning.models import load_model
from primia.learning.training import predict
from primia.simulation.modes import Mode, Plan, participants, train
from primia.simulation.sites import Setting

Progress = Callable[[str, int, int], None]  # (training, rounds done, of how many)


@dataclass(frozen=True)
class Outcome:
    """``predicted``: class numbers of the test images (N,)."""

    name: str
    images: int
    seconds: float
    figures: Figures
    predicted: NDArray[np.int64]


@dataclass(frozen=True)
class Pair:
    """Two trainings on the same test images; ``mcc``: the difference, second less first."""

    first: str
    second: str
    mcnemar: McNemar
    kappa: float
    mcc: float


@dataclass(frozen=True)
class Comparison:
    outcomes: tuple[Outcome, ...]
    pairs: tuple[Pair, ...]


def compare(
    setting: Setting, plan: Plan, modes: Sequence[Mode], progress: Progress | None = None
) -> Comparison:
    """Train in each mode; each two neighbours in the order given are compared."""
    outcomes = []
    for mode in modes:
        for name, sites in participants(mode, setting).items():
            started = time.perf_counter()

            def told(done: int, rounds: int, name: str = name) -> None:
                if progress:
                    progress(name, done, rounds)

            weights = train(sites, setting.spec, plan, secure=mode == "secure", progress=told)
            seconds = time.perf_counter() - started
            images = sum(len(site.training) for site in sites)
            logits = predict(load_model(setting.spec, weights), setting.test, device="auto")
            counts = count(logits, setting.test.labels)
            if counts is None:
                raise InvalidInput("The test images cannot be counted.")
            found = figures(counts, setting.spec.classes)
            outcomes.append(Outcome(name, images, seconds, found, logits.argmax(axis=1)))
    pairs = [
        _pair(first, second, setting.test.labels) for first, second in itertools.pairwise(outcomes)
    ]
    return Comparison(tuple(outcomes), tuple(pairs))


def _pair(first: Outcome, second: Outcome, labels: NDArray[np.int64]) -> Pair:
    return Pair(
        first.name,
        second.name,
        compare_classifiers(first.predicted, second.predicted, labels),
        kappa(first.predicted, second.predicted),
        second.figures.mcc - first.figures.mcc,
    )
