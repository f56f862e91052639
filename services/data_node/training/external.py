"""A round of a model whose code this site has itself: a MONAI bundle that its operator enabled for
the layout of the model's state. Imports torch: for workers only."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from primia.aggregation.bounds import check_norm
from primia.aggregation.errors import InvalidUpdate
from primia.aggregation.terms import Groups
from primia.chassis.context import Context
from primia.chassis.telemetry import get_logger
from primia.errors import MalformedMessage, UnexpectedMessage
from primia.learning import bundles
from primia.learning.layout import Layout, Vector, check_vector, read_state_file
from primia.messages.rounds import ModelEvaluation, Proposal, Scores
from services.data_node.training.local import LocalResult, Stop
from services.data_node.training.site import Site

log = get_logger(__name__)


def train(ctx: Context, proposal: Proposal, weights: Path, site: Site, stop: Stop) -> LocalResult:
    """Raises BundleFailed, BundleMismatch, what ``stop`` raises, and InvalidUpdate."""
    started = time.perf_counter()
    algo, layout, vector = _opened(ctx, proposal, weights, site)
    received = _scores(algo, layout, vector)
    found = bundles.train(algo, layout, vector, stop)
    trained = _scores(algo, layout, vector + found.change)
    bundles.close(algo)
    change = check_vector(found.change, layout, InvalidUpdate)
    groups = Groups(layout.group_size("parameters"), layout.group_size("buffers"))
    check_norm(change, vector, groups, proposal.max_norm)
    return LocalResult(
        change=change,
        groups=groups,
        samples=found.samples,
        loss=trained.loss,
        accuracy=trained.accuracy,
        seconds=time.perf_counter() - started,
        received=received,
        stopped=False,
        carried=None,
    )


def evaluate(ctx: Context, proposal: Proposal, weights: Path, site: Site) -> ModelEvaluation:
    """By the bundle's own evaluation, on the images that it sets apart itself."""
    algo, layout, vector = _opened(ctx, proposal, weights, site)
    scores = _scores(algo, layout, vector)
    bundles.close(algo)
    return ModelEvaluation(scores=scores)


def _opened(
    ctx: Context, proposal: Proposal, weights: Path, site: Site
) -> tuple[Any, Layout, Vector]:
    torch.set_num_threads(ctx.settings.threads)
    wanted = proposal.model.layout or ""
    folder: Path | None = ctx.settings.bundles.get(wanted)
    if folder is None:
        raise UnexpectedMessage(f"This site has enabled no bundle for the layout {wanted}.")
    epochs = proposal.training.epochs or 1
    algo = bundles.open_bundle(folder, ctx.identity.name, site.root, epochs, wanted)
    layout = bundles.layout_of(algo)
    return algo, layout, read_state_file(weights, layout, MalformedMessage)


def _scores(algo: Any, layout: Layout, vector: Vector) -> Scores:
    """Loss and accuracy, where the bundle calls them so; all else stays in this site's log."""
    found = bundles.evaluate(algo, layout, vector)
    log.info("bundle evaluated", **{f"metric_{name}": value for name, value in found.items()})
    accuracy = found.get("accuracy", found.get("val_accuracy"))
    return Scores(
        samples=bundles.evaluated_samples(algo),
        loss=found.get("loss", found.get("val_loss")),
        accuracy=accuracy if accuracy is not None and 0 <= accuracy <= 1 else None,
    )
