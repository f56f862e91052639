"""Optuna's samplers, pruners and importances over the trials in our tables.

A study is built anew from the rows for each question, so that the rows are the only state: any
process may go on where another one left off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial
from pydantic import JsonValue

from primia.messages.studies import Parameter, StudyRequest, value_text
from services.model_owner.studies.domain import Past

LEAST_FOR_IMPORTANCE = 4


def suggest(request: StudyRequest, past: Sequence[Past]) -> dict[str, JsonValue] | None:
    """The parameters of the next trial; None where a grid has been gone through."""
    if request.sampler == "grid" and len(past) >= _cells(request):
        return None
    study = _study(request, past)
    trial = study.ask(fixed_distributions=_distributions(request))
    return {path: _drawn(request.parameters[path], each) for path, each in trial.params.items()}


def is_worse(request: StudyRequest, past: Sequence[Past], number: int) -> bool:
    """Whether trial ``number``, which is running, should be pruned by its latest report."""
    if request.pruning.kind == "none" or not past[number].reports:
        return False
    study = _study(request, past)
    return study.pruner.prune(study, study.trials[number])


def importance(request: StudyRequest, past: Sequence[Past]) -> dict[str, float]:
    """Each parameter's share of the value's variance (fANOVA); empty where little is known."""
    values = [trial.value for trial in past if trial.state == "complete"]
    if len(values) < LEAST_FOR_IMPORTANCE or len(set(values)) < 2:
        return {}
    from optuna.importance import get_param_importances  # scikit-learn: nothing else needs it

    return dict(get_param_importances(_study(request, past)))


def _study(request: StudyRequest, past: Sequence[Past]) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="minimize" if request.objective == "loss" else "maximize",
        sampler=_sampler(request, len(past)),
        pruner=_pruner(request),
    )
    distributions = _distributions(request)
    for trial in past:
        study.add_trial(
            create_trial(
                state=_STATES[trial.state],
                params={
                    path: _place(request.parameters[path], value)
                    for path, value in trial.parameters.items()
                },
                distributions=distributions,
                value=trial.value,
                intermediate_values={int(k): v for k, v in trial.reports.items()},
            )
        )
    return study


_STATES = {
    "running": TrialState.RUNNING,
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def _sampler(request: StudyRequest, number: int) -> optuna.samplers.BaseSampler:
    """Seeded by study and trial: the same draw again after a crash."""
    seed = (request.seed + 1_000_003 * number) % 2**31
    if request.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if request.sampler == "grid":
        return optuna.samplers.BruteForceSampler(seed=seed)
    # Trials that are running count as bad ones, so that parallel trials differ.
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=min(10, max(4, request.trials // 4)), constant_liar=True
    )


def _pruner(request: StudyRequest) -> optuna.pruners.BasePruner:
    rule = request.pruning
    if rule.kind == "none":
        return optuna.pruners.NopPruner()
    percentile = 50.0 if rule.kind == "median" else rule.percentile
    return optuna.pruners.PercentilePruner(
        percentile, n_startup_trials=rule.startup_trials, n_warmup_steps=rule.warmup_rounds
    )


def _distributions(request: StudyRequest) -> dict[str, BaseDistribution]:
    return {path: _distribution(each) for path, each in request.parameters.items()}


def _distribution(parameter: Parameter) -> BaseDistribution:
    if parameter.kind == "float":
        return FloatDistribution(parameter.low, parameter.high, log=parameter.log)
    if parameter.kind == "int":
        return IntDistribution(parameter.low, parameter.high, step=parameter.step)
    return CategoricalDistribution(range(len(parameter.values)))


def _place(parameter: Parameter, value: JsonValue) -> JsonValue:
    """What stands for it in the study: of a choice its number, as a choice may be a whole group."""
    return parameter.texts.index(value_text(value)) if parameter.kind == "choice" else value


def _drawn(parameter: Parameter, place: Any) -> JsonValue:
    found: JsonValue = parameter.values[place] if parameter.kind == "choice" else place
    return found


def _cells(request: StudyRequest) -> int:
    cells = 1
    for each in request.parameters.values():
        if each.kind == "choice":
            cells *= len(each.values)
        elif each.kind == "int":
            cells *= (each.high - each.low) // each.step + 1
    return cells
