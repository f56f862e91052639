"""What a run or a round would cost this site's images, against the site's limit and ledger."""

from __future__ import annotations

from sqlalchemy.orm import Session

from primia.chassis.context import Context
from primia.errors import InvalidInput
from primia.learning.accounting import BatchTooLarge, Release, release_of_round
from primia.learning.manifest import DatasetManifest
from primia.messages.rounds import Proposal
from services.data_node.datasets import store as datasets
from services.data_node.datasets.store import Dataset
from services.data_node.privacy import store as ledger
from services.data_node.privacy.domain import BudgetExceeded, check_budget, check_minimum
from services.data_node.privacy.store import Charge
from services.data_node.training.parts import split_for
from services.data_node.training.tables import Run


class TooFewImages(InvalidInput):
    """BatchNorm has no statistics of one image, and a mean over one is itself."""

    code = "too-few-images"
    title = "The site has fewer than two training images"


class NothingWatched(InvalidInput):
    """Local early stopping would never stop this site, whatever the others do."""

    code = "nothing-watched"
    title = "The site has no validation images for early stopping"


def check_run(ctx: Context, session: Session, proposal: Proposal, dataset: Dataset) -> None:
    """Whether this site may train the whole run on the data set. A run that only evaluates trains
    on nothing, and its scores have no ε (docs/privacy.md).

    Raises TooFewImages, NothingWatched, BatchTooLarge, BudgetTooSmall, BudgetExceeded or
    BelowMinimum.
    """
    if not proposal.planned:
        return
    training, validation, _ = split_for(proposal, datasets.manifest(session, dataset))
    images = len(training)
    if images < 2:
        raise TooFewImages(f"{dataset.name} leaves {images} images to train on.")
    if proposal.training.local_stopping is not None and not len(validation):
        raise NothingWatched(
            f"{dataset.name} leaves no images to validate on: local early stopping needs some.",
            hint="Propose the run without local_stopping, or choose a data set of more patients.",
        )
    if proposal.model.layout is None and proposal.training.batch_size > images:
        raise BatchTooLarge(
            f"A batch of {proposal.training.batch_size} is larger than the {images} images that "
            f"{dataset.name} leaves to train on."
        )
    wanted = release_at(proposal, images)
    if wanted is not None:
        wanted = wanted._replace(steps=wanted.steps * proposal.planned)
    _check(ctx, session, proposal, dataset.id, wanted)
    if proposal.statistics.wanted:
        check_minimum(images, ctx.settings.statistics_minimum)
        check_budget((), None, ctx.settings.privacy_epsilon, ctx.settings.privacy_delta)


def check_round(
    ctx: Context, session: Session, proposal: Proposal, dataset: str, manifest: DatasetManifest
) -> Release | None:
    """What one more round will cost: to be charged. Raises BudgetExceeded."""
    wanted = release_at(proposal, len(split_for(proposal, manifest)[0]))
    _check(ctx, session, proposal, dataset, wanted)
    return wanted


def check_again(
    ctx: Context, session: Session, proposal: Proposal, dataset: str, wanted: Release | None
) -> None:
    """In the transaction that charges: another round may have been charged since ``check_round``,
    or the limit lowered. Raises BudgetExceeded."""
    _check(ctx, session, proposal, dataset, wanted)


def release_at(proposal: Proposal, images: int) -> Release | None:
    """Of one round; None for training without noise."""
    dp = proposal.privacy.dp_sgd
    if dp is None:
        return None
    return release_of_round(images, proposal.training, dp, proposal.planned)


def _check(
    ctx: Context, session: Session, proposal: Proposal, dataset: str, wanted: Release | None
) -> None:
    rows = ledger.charges(session, proposal.owner, dataset)
    spent = ledger.releases(rows)
    if ctx.settings.privacy_epsilon is not None and len(spent) < len(rows):
        raise BudgetExceeded(
            "Rounds without noise were trained on this data set for this owner: no limit on its "
            "epsilon can be kept any more."
        )
    check_budget(spent, wanted, ctx.settings.privacy_epsilon, ctx.settings.privacy_delta)


def charge(ctx: Context, session: Session, run: Run, number: int, release: Release | None) -> None:
    """Enter a round into the ledger, in the transaction that makes its report."""
    row = Charge(
        run=run.id,
        round=number,
        owner=run.owner,
        dataset=run.dataset,
        dataset_name=run.dataset_name,
        created=ctx.clock.now(),
    )
    if release is not None:
        row.noise_multiplier, row.sample_rate, row.steps = release
    session.add(row)
