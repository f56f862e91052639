"""One round of training at this site, and evaluation. Imports torch: for workers only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from primia.aggregation.errors import InvalidUpdate
from primia.aggregation.terms import Groups
from primia.chassis.context import Context
from primia.errors import InvalidInput, MalformedMessage
from primia.evaluation.counts import Counts, count
from primia.learning.cache import cache_file, load_pixels
from primia.learning.carried import Carried
from primia.learning.layout import Vector, check_vector, read_state
from primia.learning.manifest import DatasetManifest, split
from primia.learning.models import flatten, load_model, spec_layout, state_layout
from primia.learning.schedules import Span
from primia.learning.spec import ModelSpec
from primia.learning.training import ImageData, local_seed, predict, train_locally
from primia.learning.training import evaluate as evaluate_on
from primia.messages.common import ModelCard
from primia.messages.rounds import (
    ModelEvaluation,
    Proposal,
    Scores,
    Train,
    TrainingSettings,
    TrainReport,
)
from services.data_node.training.site import Site

# The same images validate every run of a data set, whatever the run's seed.
_SPLIT_SEED = 0
_TEST_SPLIT_SEED = 1
Stop = Callable[[], None]


@dataclass(frozen=True)
class LocalResult:
    """``change``: float32 (groups.size,), trained minus incoming; ``samples``: trained on;
    ``carried``: what the site's next round goes on from, if it does (learning.carried)."""

    change: NDArray[np.float32]
    groups: Groups
    samples: int
    loss: float
    accuracy: float
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
    weights: bytes,
    site: Site,
    carried: bytes | None,
    stop: Stop,
) -> LocalResult:
    """Train from the incoming weights, with a seed of run, round and node: the same again after a
    crash. Raises what ``stop`` raises, and InvalidUpdate where training has diverged."""
    torch.set_num_threads(ctx.settings.threads)
    spec = spec_of(proposal.model, proposal.training)
    vector = read_state(weights, spec_layout(spec), MalformedMessage)
    module = load_model(spec, vector)
    proposal.training.check_classes(len(spec.classes))
    parts = _images(ctx, proposal, spec, site, stop)
    training, validation = parts.training, parts.validation
    received = _score(module, validation, stop)
    done = train_locally(
        module,
        training,
        proposal.training,
        local_seed(proposal.training.seed, item.round, ctx.identity.name),
        validation=validation,
        span=Span.of_round(item.done, proposal.planned),
        carried=Carried.from_bytes(carried) if carried else None,
        device="auto",
        should_stop=_asking(stop),
    )
    layout = state_layout(module)
    change = check_vector(flatten(module) - vector, layout, InvalidUpdate)
    groups = Groups(layout.group_size("parameters"), layout.group_size("buffers"))
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


def _carries(settings: TrainingSettings) -> bool:
    """Whether a round of this site depends on the one before."""
    return settings.optimiser_state == "kept" or settings.local_stopping is not None


def evaluate(
    ctx: Context, proposal: Proposal, weights: bytes, site: Site, stop: Stop
) -> ModelEvaluation:
    """The model on the site's validation and test images."""
    torch.set_num_threads(ctx.settings.threads)
    spec = spec_of(proposal.model, proposal.training)
    vector: Vector = read_state(weights, spec_layout(spec), MalformedMessage)
    module = load_model(spec, vector)
    parts = _images(ctx, proposal, spec, site, stop)
    return ModelEvaluation(
        scores=_score(module, parts.validation, stop),
        validation=_counts(module, parts.validation, stop),
        test=_counts(module, parts.test, stop),
    )


def _counts(module: torch.nn.Module, data: ImageData | None, stop: Stop) -> Counts | None:
    if data is None:
        return None
    return count(predict(module, data, device="auto", should_stop=_asking(stop)), data.labels)


def spec_of(card: ModelCard, settings: TrainingSettings) -> ModelSpec:
    """What the owner describes, at the size that this run trains with."""
    try:
        return ModelSpec.parse(
            {
                "architecture": card.architecture,
                "classes": card.classes,
                "channels": card.channels,
                "norm": card.norm,
                "image_size": settings.image_size,
                "mean": card.mean,
                "std": card.deviation,
            }
        )
    except InvalidInput as error:
        raise MalformedMessage(f"The model owner's model cannot be built: {error}") from None


@dataclass(frozen=True)
class Parts:
    """A site's images, disjoint by patient."""

    training: ImageData
    validation: ImageData | None
    test: ImageData | None


def _images(ctx: Context, proposal: Proposal, spec: ModelSpec, site: Site, stop: Stop) -> Parts:
    """Labels in the order of the model's classes. The test images are set apart first: they are the
    same whatever share is validated on."""
    manifest = DatasetManifest.of(site.manifest.entries, spec.classes)
    settings = proposal.training
    rest, test = split(manifest, settings.test_fraction, _TEST_SPLIT_SEED)
    training, validation = split(rest, settings.validation_fraction, _SPLIT_SEED)
    folder = ctx.files.path("pixels", site.dataset, "cache").parent

    def data(part: DatasetManifest) -> ImageData:
        size, channels = spec.image_size, spec.channels
        if not cache_file(folder, part, size, channels).exists():
            ctx.files.require(len(part) * channels * size * size)
        pixels = load_pixels(part, site.root, size, channels, folder, lambda _done, _all: stop())
        return ImageData.of(pixels, part.labels(), spec)

    return Parts(
        data(training),
        data(validation) if len(validation) else None,
        data(test) if len(test) else None,
    )


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
