"""Deciding on a proposed run: what stands against it, acceptance and refusal.

All within the caller's transaction: the run's state, the hold on the data set and the stored answer
to the owner change together or not at all.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from primia.chassis.context import Context
from primia.chassis.db import after_commit
from primia.errors import Conflict
from primia.learning.spec import task_of as task_of_model
from primia.messages.rounds import Decision, NodeCard, Proposal, unfit_for_masks
from services.data_node.datasets import store as datasets
from services.data_node.datasets.domain import Split, colour_lost, misfit, task_of
from services.data_node.datasets.store import Dataset
from services.data_node.programs import store as programs
from services.data_node.training import budget, domain, figures, store
from services.data_node.training.round_files import wipe
from services.data_node.training.tables import MAX_TEXT, Run

BUSY = "This site takes part in another run already."
PLAIN = (
    "The run is without secure aggregation: the owner would see this site's own update, which this "
    "site's settings do not allow (PRIMIA_ACCEPT_PLAIN_UPDATES)."
)


def objections(ctx: Context, session: Session, run: Run) -> list[str]:
    """Why this site must not take part at present, whatever data set it would train on."""
    proposal = run.read_proposal()
    found = domain.objections(
        proposal,
        me=NodeCard(name=ctx.identity.name, public_key=ctx.identity.public_key),
        owner=ctx.settings.owner_name,
        enrolled={node.name: node.public_key for node in ctx.principals.by_role("data_node")},
    )
    if not proposal.secure and not ctx.settings.accept_plain_updates:
        found.append(PLAIN)
    if proposal.secure and proposal.threshold < ctx.settings.minimum_sites:
        found.append(
            f"The run opens sums of {proposal.threshold} sites; this site's are opened over at "
            f"least {ctx.settings.minimum_sites} (PRIMIA_MINIMUM_SITES)."
        )
    found += domain.unsafe_graph(proposal, ctx.settings.colluding_share)
    if proposal.statistics.wanted and proposal.measuring_threshold < ctx.settings.minimum_sites:
        found.append(
            f"The run opens statistics of {proposal.measuring_threshold} sites; this site's are "
            f"opened over at least {ctx.settings.minimum_sites} (PRIMIA_MINIMUM_SITES)."
        )
    layout = proposal.model.layout
    if layout is not None and layout not in ctx.settings.bundles:
        found.append(f"This site has enabled no bundle for the layout {layout} (PRIMIA_BUNDLES).")
    if task_of_model(proposal.model.architecture) == "segmentation":
        settings = proposal.training, proposal.statistics, proposal.privacy
        found += [f"Segmentation: {reason}." for reason in unfit_for_masks(*settings)]
    unapproved = programs.objection(session, proposal)
    if unapproved:
        found.append(unapproved)
    active = store.active_run(session)
    if active is not None and active.id != run.id:
        found.append(BUSY)
    return found


def approve(ctx: Context, session: Session, run: Run, dataset: Dataset, by: str) -> None:
    """Raises Conflict, naming the reason, for a run that this site must not join."""
    against = objections(ctx, session, run)
    if against:
        raise Conflict("The run cannot be approved. " + " ".join(against))
    difference = _misfit(dataset, run.read_proposal())
    if difference:
        raise Conflict(
            f"{dataset.name} does not fit {run.model}: {difference}.",
            hint="Choose another data set, or refuse the run.",
        )
    dataset = datasets.lock_ready(session, dataset)
    settings = run.read_proposal().training
    split = Split(settings.validation_fraction, settings.test_fraction)
    datasets.keep_split(dataset, split, others=ctx.settings.other_splits)
    budget.check_run(ctx, session, run.read_proposal(), dataset)
    _decide(ctx, session, run, "active", "", by)
    run.dataset, run.dataset_name = dataset.id, dataset.name
    datasets.hold(session, dataset, store.holder(run.id))
    manifest = datasets.manifest(session, dataset)
    own = tuple(dataset.classes)
    if task_of(dataset.kind) == "segmentation":  # numbers: the model's classes in their order
        own = run.read_proposal().model.classes
    decision = Decision(
        accepted=True,
        samples=dataset.images,
        classes=own,
        **figures.offered(ctx, run.read_proposal(), manifest),
    )
    _answer(ctx, session, run, decision)


def refuse(ctx: Context, session: Session, run: Run, reason: str, by: str) -> None:
    _decide(ctx, session, run, "refused", reason, by)
    _answer(ctx, session, run, Decision(accepted=False, reason=reason[:MAX_TEXT]))


def withdraw(ctx: Context, session: Session, run: Run, reason: str, by: str) -> None:
    """Leave a run that this site takes part in, whether or not the owner can be reached: whatever
    it asks for from now on is answered with a failure."""
    if run.state != "active":
        raise Conflict(f"The run is {run.state}; only an active one can be left.")
    store.end(session, run, "withdrawn", f"{by}: {reason}", ctx.clock.now())
    after_commit(session, lambda: wipe(ctx, run.id))


def decide_automatically(ctx: Context, session: Session, run: Run) -> None:
    """Policy "auto": join with the only ready data set that fits, else refuse with the reason."""
    against = objections(ctx, session, run)
    fitting, reason = _only_fitting(session, run.read_proposal())
    if against or fitting is None:
        refuse(ctx, session, run, " ".join(against) or reason, "policy")
    else:
        approve(ctx, session, run, fitting, "policy")


def _only_fitting(session: Session, proposal: Proposal) -> tuple[Dataset | None, str]:
    ready = datasets.listing(session, "ready")
    if not ready:
        return None, _none_ready(session)
    fitting = [row for row in ready if not _misfit(row, proposal)]
    if len(fitting) == 1:
        return fitting[0], ""
    if fitting:
        return None, f"{len(fitting)} data sets of this site fit; a user has to choose one."
    if len(ready) == 1:
        return None, f"This site's data set does not fit: {_misfit(ready[0], proposal)}."
    wanted = task_of_model(proposal.model.architecture)
    if not any(task_of(row.kind) == wanted for row in ready):
        return None, f"None of this site's {len(ready)} data sets is for {wanted}."
    return None, f"None of this site's {len(ready)} data sets has the model's classes."


def _none_ready(session: Session) -> str:
    """Its images are at fault, or nobody has registered any."""
    parts = [
        f"one was rejected when it was registered ({datasets.rejection(session, row)})"
        for row in datasets.listing(session, "rejected")
    ]
    parts += ["one is still looked at" for _ in datasets.listing(session, "validating")]
    if not parts:
        return "This site has registered no data set."
    return f"No data set of this site is ready: {', '.join(parts)}."


def _misfit(row: Dataset, proposal: Proposal) -> str:
    card = proposal.model
    found = misfit(row.kind, row.classes, card.architecture, card.classes)
    colour = row.look["colour"] if row.look else 0
    return found or colour_lost(colour, row.images, card.channels)


def _decide(
    ctx: Context, session: Session, run: Run, state: domain.RunState, reason: str, by: str
) -> None:
    if run.state != "pending":
        raise Conflict(f"The run is {run.state}; it has been decided on.")
    now = ctx.clock.now()
    store.set_state(session, run, state, reason, now)
    run.decided, run.decided_by = now, by


def _answer(ctx: Context, session: Session, run: Run, decision: Decision) -> None:
    item = store.review_of(session, run.id)
    if item is None or item.state not in ("open", "waiting"):
        raise Conflict("The model owner does not wait for a decision on this run any more.")
    path = f"/rounds/{run.id}/decision"
    store.set_answer(item, path, decision.model_dump_json(), ctx.clock.now())
    ctx.jobs.enqueue_after(session, "training.work", item.id)
