"""One round of training at this site, and evaluation. Imports torch: for workers only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from primia.aggregation.bounds import Bounds, Norms
from primia.aggregation.central import clip
from primia.aggregation.errors import InvalidUpdate
from primia.aggregation.terms import Groups
from primia.chassis.context import Context
from primia.errors import InvalidInput, MalformedMessage
from primia.evaluation.counts import Counts, count, total
from primia.learning import statistics
from primia.learning.accounting import Release
from primia.learning.cache import cache_file, load_masks, load_pixels, load_sizes
from primia.learning.carried import Carried
from primia.learning.config import TrainingConfig
from primia.learning.layout import Vector, check_vector, read_state_file, subtract_state_file
from primia.learning.manifest import DatasetManifest
from primia.learning.models import flatten, load_into, load_model, spec_layout
from primia.learning.schedules import Span
from primia.learning.spec import ModelSpec
from primia.learning.statistics import Statistics, Sums
from primia.learning.training import ImageData, local_seed, predict, predict_pixels, train_locally
from primia.learning.training import evaluate as evaluate_on
from primia.messages.rounds import (
    Evaluate,
    ModelEvaluation,
    Proposal,
    Scores,
    Train,
    TrainingSettings,
    TrainReport,
)
from services.data_node.privacy.domain import check_minimum
from services.data_node.training.domain import check_still_trains
from services.data_node.training.parts import split_for
from services.data_node.training.site import Site

Stop = Callable[[], None]


@dataclass(frozen=True)
class LocalResult:
    """``change``: float32 (groups.size,), trained minus incoming; ``samples``: trained on;
    ``carried``: what the site's next round goes on from, if it does (learning.carried)."""

    change: NDArray[np.float32]
    groups: Groups
    samples: int
    loss: float | None
    accuracy: float | None
    seconds: float
    received: Scores
    stopped: bool
    carried: bytes | None

    def report(self) -> TrainReport:
        return TrainReport(
            samples=self.samples,
            loss=self.loss,
            accuracy=self.accuracy,
            seconds=self.seconds,
            received=self.received,
            stopped=self.stopped,
        )


def train(
    ctx: Context,
    proposal: Proposal,
    item: Train,
    weights: Path,
    site: Site,
    carried: bytes | None,
    stop: Stop,
    release: Release | None = None,
) -> LocalResult:
    """Train from the incoming weights, with a seed of run, round and node: the same again after a
    crash; or privately, at the cost of ``release``, with batches and noise drawn anew. Raises what
    ``stop`` raises, and InvalidUpdate where training has diverged."""
    before = Carried.from_bytes(carried) if carried else None
    check_still_trains(proposal, stopped=before is not None and before.standing.stopped)
    torch.set_num_threads(ctx.settings.threads)
    spec = spec_of(proposal, item.statistics)
    layout = spec_layout(spec)
    vector = read_state_file(weights, layout, MalformedMessage)
    groups = Groups(layout.group_size("parameters"), layout.group_size("buffers"))
    bounds = Norms.of(vector, groups).bounds(proposal.max_norm)
    module = load_into(spec, vector)
    config = _config(proposal, spec, item.statistics)
    mine, watched, _ = split_for(proposal, site.manifest)
    training = _data(ctx, mine, spec, site, stop)
    validation = _some(ctx, watched, spec, site, stop)
    received = _score(module, validation, stop)
    seed = local_seed(proposal.training.seed, item.round, ctx.identity.name)
    span = Span.of_round(item.done, proposal.planned)
    asked, dp = _asking(stop), proposal.privacy.dp_sgd
    if dp is not None and release is not None:
        from primia.learning.private import train_privately  # Opacus: only where it is needed

        done = train_privately(
            module, training, config, dp, release, seed,
            span=span, carried=before, device="auto", should_stop=asked,
        )  # fmt: skip
    else:
        done = train_locally(
            module, training, config, seed,
            validation=validation, span=span, carried=before, device="auto", should_stop=asked,
            may_return=not proposal.secure or proposal.privacy.central is not None,
        )  # fmt: skip
    change = flatten(module, vector)
    del module
    check_vector(change, layout, InvalidUpdate)
    subtract_state_file(change, weights, layout, MalformedMessage)
    change = _bounded(proposal, change, groups, bounds)
    return LocalResult(
        change,
        groups,
        len(training),
        done.loss,
        done.accuracy,
        done.seconds,
        received,
        done.carried.standing.stopped,
        done.carried.to_bytes() if _carries(proposal.training) else None,
    )


def _bounded(
    proposal: Proposal, change: Vector, groups: Groups, bounds: Bounds
) -> NDArray[np.float32]:
    """The change, clipped where the run asks for it; refused where it is out of all proportion."""
    if proposal.privacy.central is not None:
        return clip(change, proposal.privacy.central.clip_norm)
    Norms.of(change, groups).check(bounds)
    return change


def _carries(settings: TrainingSettings) -> bool:
    """Whether a round of this site depends on the one before."""
    return settings.optimiser_state == "kept" or settings.local_stopping is not None


def _config(proposal: Proposal, spec: ModelSpec, statistics: Statistics | None) -> TrainingConfig:
    config: TrainingConfig = proposal.training
    if proposal.statistics.class_weights and statistics is not None:
        config = config.model_copy(update={"class_weights": statistics.class_weights()})
    config.check_classes(len(spec.classes))
    return config


def measure(ctx: Context, proposal: Proposal, site: Site, stop: Stop) -> Sums:
    """The sums of learning.statistics over the site's training images.

    Raises BelowMinimum where these are fewer than the site gives statistics of.
    """
    spec = spec_of(proposal, None)
    manifest, _, _ = split_for(proposal, site.manifest)
    check_minimum(len(manifest), ctx.settings.statistics_minimum)
    data = _data(ctx, manifest, spec, site, stop)
    sizes = load_sizes(manifest, site.root, lambda _done, _all: stop())
    return statistics.measure(data.pixels, data.labels, sizes, len(spec.classes))


def evaluate(
    ctx: Context, proposal: Proposal, item: Evaluate, weights: Path, site: Site, stop: Stop
) -> ModelEvaluation:
    """The model on the site's validation and test images, with labels in the order of the model's
    classes."""
    torch.set_num_threads(ctx.settings.threads)
    spec = spec_of(proposal, item.statistics)
    module = load_model(spec, read_state_file(weights, spec_layout(spec), MalformedMessage))
    _, *watched = split_for(proposal, site.manifest)
    validation, test = (_some(ctx, part, spec, site, stop) for part in watched)
    return ModelEvaluation(
        scores=_score(module, validation, stop),
        validation=_counts(ctx, module, validation, stop),
        test=_counts(ctx, module, test, stop),
    )


def _counts(
    ctx: Context, module: torch.nn.Module, data: ImageData | None, stop: Stop
) -> Counts | None:
    """None of fewer images than the site's minimum: counts of a few would tell of each."""
    if data is None or len(data) < ctx.settings.statistics_minimum:
        return None
    asked = _asking(stop)
    if data.masks:
        parts = predict_pixels(module, data, device="auto", should_stop=asked)
        return total(found for logits, truth in parts if (found := count(logits, truth)))
    return count(predict(module, data, device="auto", should_stop=asked), data.labels)


def spec_of(proposal: Proposal, known: Statistics | None) -> ModelSpec:
    """What the owner describes, at the size and with the normalisation that this run trains with;
    ``known``: the statistics of all sites, once they are measured."""
    card = proposal.model
    mean, std = card.mean, card.deviation
    if known is not None and proposal.statistics.normalise:
        mean, std = known.normalisation()
    try:
        return ModelSpec.parse(
            {
                **({} if card.width is None else {"width": card.width}),
                "architecture": card.architecture,
                "classes": card.classes,
                "channels": card.channels,
                "image_size": proposal.training.image_size,
                "norm": card.norm,
                "mean": mean,
                "std": std,
                "program": proposal.program,
            }
        )
    except InvalidInput as error:
        raise MalformedMessage(f"The model owner's model cannot be built: {error}") from None


def _some(
    ctx: Context, part: DatasetManifest, spec: ModelSpec, site: Site, stop: Stop
) -> ImageData | None:
    return _data(ctx, part, spec, site, stop) if len(part) else None


def _data(
    ctx: Context, part: DatasetManifest, spec: ModelSpec, site: Site, stop: Stop
) -> ImageData:
    folder = ctx.files.path("pixels", site.dataset, "cache").parent
    size, channels = spec.image_size, spec.channels
    if not cache_file(folder, part, size, channels).exists():
        ctx.files.require(len(part) * channels * size * size)
    pixels = load_pixels(part, site.root, size, channels, folder, lambda _done, _all: stop())
    if spec.task == "segmentation":
        masks = load_masks(part, site.root, size, folder, lambda _done, _all: stop())
        return ImageData.of(pixels, masks, spec)
    return ImageData.of(pixels, part.labels(), spec)


def _score(module: torch.nn.Module, data: ImageData | None, stop: Stop) -> Scores:
    if data is None:
        return Scores(samples=0)
    found = evaluate_on(module, data, device="auto", should_stop=_asking(stop))
    loss = found.loss if math.isfinite(found.loss) else None
    return Scores(samples=found.samples, loss=loss, accuracy=found.accuracy)


def _asking(stop: Stop) -> Callable[[], bool]:
    """``stop`` raises its own reason, which says more than a yes."""

    def asked() -> bool:
        stop()
        return False

    return asked
