"""What each mode of training is worth on the same test images."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from primia.errors import InvalidInput
from primia.evaluation.comparison import McNemar, compare_classifiers, kappa
from primia.evaluation.counts import count
from primia.evaluation.figures import Figures
from primia.evaluation.measuring import figures
from primia.learning.accounting import DpSgd
from primia.learning.layout import Vector
from primia.learning.models import load_model
from primia.learning.spec import WITHOUT_NORM, ModelSpec
from primia.learning.training import predict
from primia.simulation.modes import Mode, Plan, check, participants, train
from primia.simulation.sites import Setting, Site

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


@dataclass(frozen=True)
class Trial:
    """One training of the comparison."""

    name: str
    sites: tuple[Site, ...]
    spec: ModelSpec
    plan: Plan
    secure: bool


def trials(
    setting: Setting, plan: Plan, modes: Sequence[Mode], epsilons: Sequence[float] = ()
) -> list[Trial]:
    """Those of each mode; then secure ones with differential privacy, each site's training costing
    it so much. For them BatchNorm becomes GroupNorm."""
    found = [
        Trial(name, sites, setting.spec, plan, mode == "secure")
        for mode in modes
        for name, sites in participants(mode, setting).items()
    ]
    apart = setting.spec.model_copy(update={"norm": "group"})
    spec = setting.spec if setting.spec.architecture in WITHOUT_NORM else apart
    for epsilon in epsilons:
        private = replace(plan, dp=DpSgd(epsilon=epsilon))
        name = f"federated, secure, ε = {epsilon:g}"
        found.append(Trial(name, setting.sites, spec, private, secure=True))
    return found


def compare(
    setting: Setting, wanted: Sequence[Trial], progress: Progress | None = None
) -> Comparison:
    """Train each; each two neighbours in the order given are compared. What cannot be trained is
    refused before the first one is."""
    for trial in wanted:
        check(trial.sites, trial.spec, trial.plan, secure=trial.secure)
    outcomes = [outcome(setting, trial, progress) for trial in wanted]
    pairs = [
        pair(first, second, setting.test.labels) for first, second in itertools.pairwise(outcomes)
    ]
    return Comparison(tuple(outcomes), tuple(pairs))


def outcome(setting: Setting, trial: Trial, progress: Progress | None = None) -> Outcome:
    """Train one and measure it on the test images."""
    started = time.perf_counter()

    def told(done: int, rounds: int) -> None:
        if progress:
            progress(trial.name, done, rounds)

    weights = train(trial.sites, trial.spec, trial.plan, secure=trial.secure, progress=told)
    return _measured(setting, trial, weights, time.perf_counter() - started)


def _measured(setting: Setting, trial: Trial, weights: Vector, seconds: float) -> Outcome:
    logits = predict(load_model(trial.spec, weights), setting.test, device="auto")  # (N, K)
    counts = count(logits, setting.test.labels)
    if counts is None:
        raise InvalidInput("The test images cannot be counted.")
    images = sum(len(site.training) for site in trial.sites)
    found = figures(counts, setting.spec.classes)
    return Outcome(trial.name, images, seconds, found, logits.argmax(axis=1))


def pair(first: Outcome, second: Outcome, labels: NDArray[np.int64]) -> Pair:
    return Pair(
        first.name,
        second.name,
        compare_classifiers(first.predicted, second.predicted, labels),
        kappa(first.predicted, second.predicted),
        second.figures.mcc - first.figures.mcc,
    )
