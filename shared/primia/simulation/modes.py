"""One plan, four modes: a site by itself, all data in one place, and federations whose owner sees
each update or their mean alone. The mode changes who trains and how updates are summed; all else,
the configuration and the code, is the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from primia.aggregation.plain import WeightedMean
from primia.aggregation.terms import Groups, default_threshold
from primia.errors import InvalidInput
from primia.learning.accounting import DpSgd, check_norm, check_settings, release_of_round
from primia.learning.carried import Carried
from primia.learning.config import ServerOptimiser
from primia.learning.layout import Layout, Vector
from primia.learning.models import create_model, flatten, load_model, state_layout
from primia.learning.schedules import Span
from primia.learning.server import Moments, step
from primia.learning.spec import ModelSpec
from primia.learning.training import local_seed, train_locally
from primia.messages.privacy import PrivacySettings
from primia.messages.rounds import TrainingSettings, contributes_nothing
from primia.simulation.secure import secure_mean
from primia.simulation.sites import Setting, Site

Mode = Literal["local", "pooled", "plain", "secure"]
Progress = Callable[[int, int], None]  # (rounds done, of how many)


@dataclass(frozen=True)
class Plan:
    """What a run's request says of training, and the number of its rounds; ``dp``: each site trains
    with differential privacy."""

    rounds: int
    training: TrainingSettings = field(default_factory=TrainingSettings)
    server: ServerOptimiser = field(default_factory=ServerOptimiser)
    dp: DpSgd | None = None


def participants(mode: Mode, setting: Setting) -> dict[str, tuple[Site, ...]]:
    """The trainings of a mode, each with its sites: one for each site where they are ``local``."""
    if mode == "local":
        return {f"local, {site.name}": (site,) for site in setting.sites}
    if mode == "pooled":
        return {"pooled": (setting.pooled(),)}
    if mode == "secure" and len(setting.sites) < 2:
        raise InvalidInput("Secure aggregation needs at least two sites.")
    return {f"federated, {mode}": setting.sites}


def check(sites: Sequence[Site], spec: ModelSpec, plan: Plan, *, secure: bool = False) -> None:
    """What a run over the services refuses before it begins. Raises InvalidInput, which names the
    site where it is one's."""
    settings = plan.training
    settings.check_classes(len(spec.classes))
    if secure and contributes_nothing(settings, PrivacySettings()):
        raise InvalidInput(
            "A stopped site's zeros would uncover the other sites' updates in a secure sum.",
            hint="Set training.local_stopping.when_stopped to leave.",
        )
    for site in sites:
        images = len(site.training)
        if settings.batch_size > images:
            raise InvalidInput(
                f"A batch of {settings.batch_size} is larger than the {images} images that "
                f"{site.name} trains on.",
                hint="Set a smaller training.batch_size.",
            )
        if settings.local_stopping is not None and site.validation is None:
            raise InvalidInput(f"{site.name} has no validation images for local early stopping.")
    if plan.dp is not None:
        check_norm(spec)
        check_settings(settings)
        for site in sites:
            release_of_round(len(site.training), settings, plan.dp, plan.rounds)


def train(
    sites: Sequence[Site],
    spec: ModelSpec,
    plan: Plan,
    *,
    secure: bool = False,
    progress: Progress | None = None,
) -> Vector:
    """The final weights, float32 (values,), from the spec's first ones. As in a run, a site that
    early stopping has stopped leaves the rounds to the others, which end when too few are left."""
    check(sites, spec, plan, secure=secure)
    module = create_model(spec)
    layout, weights = state_layout(module), flatten(module)
    moments = Moments.initial(layout.group_size("parameters"), plan.server)
    carried: dict[str, Carried] = {}
    for number in range(1, plan.rounds + 1):
        willing = _willing(sites, plan, carried)
        if len(willing) < (default_threshold(len(sites)) if secure else 1):
            break
        changes: dict[str, Vector] = {}
        for site in willing:
            module, before = load_model(spec, weights), carried.get(site.name)
            carried[site.name] = _trained(module, site, plan, number, before, secure=secure)
            changes[site.name] = flatten(module) - weights
        samples = {site.name: len(site.training) for site in willing}
        mean = _mean(changes, samples, layout, secure=secure)
        weights = _stepped(weights, mean, layout, plan.server, moments)
        if progress:
            progress(number, plan.rounds)
    return weights


def _willing(sites: Sequence[Site], plan: Plan, carried: Mapping[str, Carried]) -> list[Site]:
    """Who trains in the next round; nobody once early stopping has stopped all."""
    rule = plan.training.local_stopping
    going = [s for s in sites if s.name not in carried or not carried[s.name].standing.stopped]
    return going if rule is None or rule.when_stopped == "leave" or not going else list(sites)


def _trained(
    module: nn.Module,
    site: Site,
    plan: Plan,
    number: int,
    carried: Carried | None,
    *,
    secure: bool,
) -> Carried:
    """The module after the site's part in round ``number``, from 1; what it carries on."""
    seed = local_seed(plan.training.seed, number, site.name)
    span = Span.of_round(number - 1, plan.rounds)
    if plan.dp is None:
        return train_locally(
            module, site.training, plan.training, seed,
            validation=site.validation, span=span, carried=carried, device="auto",
            may_return=not secure,
        ).carried  # fmt: skip
    from primia.learning.private import train_privately  # Opacus: only where it is needed

    release = release_of_round(len(site.training), plan.training, plan.dp, plan.rounds)
    return train_privately(
        module, site.training, plan.training, plan.dp, release, seed,
        span=span, carried=carried, device="auto",
    ).carried  # fmt: skip


def _mean(
    changes: Mapping[str, Vector], samples: Mapping[str, int], layout: Layout, *, secure: bool
) -> Vector:
    if secure:
        groups = Groups(layout.group_size("parameters"), layout.group_size("buffers"))
        return secure_mean(changes, samples, groups)
    total = WeightedMean(layout.size)
    for name in sorted(changes):
        total.add(changes[name], samples[name])
    return total.result()


def _stepped(
    weights: Vector, mean: Vector, layout: Layout, config: ServerOptimiser, moments: Moments
) -> Vector:
    if config.kind == "average":
        return weights + mean
    moved = weights.copy()
    step(moved, mean, layout.group_size("parameters"), config, moments)
    return moved
