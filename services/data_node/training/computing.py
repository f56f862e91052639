"""Work items for which this site looks at its images: to measure, to train, to evaluate.

Their answers are all that leaves, and what the run's privacy covers is all that they tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sqlalchemy.orm import Session

from primia.chassis.context import Context
from primia.chassis.identity import encode_key
from primia.errors import UnexpectedMessage
from primia.messages.rounds import (
    Decision,
    Evaluate,
    Evaluation,
    EvaluationReport,
    Measure,
    MeasureReport,
    ModelEvaluation,
    Proposal,
    Train,
    terms_of,
)
from services.data_node.programs import store as programs
from services.data_node.training import budget, domain, figures, secure, store
from services.data_node.training.job import Job, still_active
from services.data_node.training.round_files import RoundFiles, wipe
from services.data_node.training.site import Site, site_of
from services.data_node.training.stopping import Stopping
from services.data_node.training.tables import Run

# Of training with noise the owner learns nothing that the noise does not cover: with DP-SGD that is
# the training itself, with central privacy whatever a site finds by itself.
UNTOLD: Mapping[str, None] = {"loss": None, "accuracy": None}
UNSCORED: Mapping[str, None] = {**UNTOLD, "received": None}


def measure(job: Job, item: Measure) -> None:
    """Sums over this site's training images, to be added to the other sites' under masks; once a
    run, since two sums over different sites would tell of the sites that only one has."""
    from services.data_node.training import local  # torch: in workers only, when it is needed

    ctx, run = job.ctx, job.run(item.run)
    proposal = run.read_proposal()
    if not proposal.statistics.wanted:
        raise UnexpectedMessage("The approved proposal asks for no statistics.")
    with ctx.db.reading() as session:
        _check_unrevealed(session, run.id)
    site = _enter_round(job, run, item.round, proposal.rounds)
    stop = Stopping(ctx, run.id, job.item_id, job.held)
    values = local.measure(ctx, proposal, site, stop)
    RoundFiles(ctx, run.id, item.round).keep_values(values)
    state, advertisement = secure.begin_counting(
        proposal, ctx.identity, item.round, len(values), terms_of(proposal, item)
    )
    sealed = secure.seal(state, ctx.secrets, run.id, item.round)

    def change(session: Session) -> None:
        still_active(session, run.id)
        _check_unrevealed(session, run.id)
        _check_new(session, run.id, item.round, proposal.rounds)
        store.begin_measuring(session, run.id, item.round, ctx.clock.now())
        store.put_secret(session, run.id, item.round, sealed)

    report = MeasureReport(advertisement=encode_key(advertisement))
    job.answer(f"/rounds/{run.id}/{item.round}/measured", report, change)


def train(job: Job, item: Train) -> None:
    from services.data_node.training import (  # torch: in workers only, when it is needed
        external,
        local,
    )

    ctx, run = job.ctx, job.run(item.run)
    proposal = run.read_proposal()
    domain.check_statistics(proposal.statistics.wanted, item.statistics is not None)
    if not proposal.planned:
        raise UnexpectedMessage("The approved proposal has no round of training.")
    decision = _agreed(ctx, proposal, run, item)
    site = _enter_round(job, run, item.round, proposal.rounds)
    files = RoundFiles(ctx, run.id, item.round)
    weights = files.fetch_weights(item.weights_digest, item.weights_bytes)
    stop = Stopping(ctx, run.id, job.item_id, job.held)
    with ctx.db.reading() as session:
        programs.check_approved(session, proposal)
        release = budget.check_round(ctx, session, proposal, site.dataset, site.manifest)
    if proposal.model.layout is not None:
        result = external.train(ctx, proposal, weights, site, stop)
    else:
        carried = files.read_carried(item.uncounted)
        result = local.train(ctx, proposal, item, weights, site, carried, stop, release)
    files.keep_change(result.change)
    if result.carried is not None:
        files.keep_carried(result.carried, item.uncounted)
    report = result.report()
    told = report if release is None else report.model_copy(update=UNTOLD)
    if item.summed:
        files.keep_values(figures.of_training(told))
    if not figures.shows_own(ctx, proposal, decision):
        told = told.model_copy(update=UNSCORED)
    sealed = None
    if proposal.secure:
        state, advertisement, exponents = secure.begin(
            proposal,
            ctx.identity,
            item.round,
            result.change,
            result.groups,
            result.samples,
            terms_of(proposal, item),
        )
        sealed = secure.seal(state, ctx.secrets, run.id, item.round)
        update = {"advertisement": encode_key(advertisement), "exponents": exponents}
        told = told.model_copy(update=update)

    def change(session: Session) -> None:
        still_active(session, run.id)
        _check_new(session, run.id, item.round, proposal.rounds)
        budget.check_again(ctx, session, proposal, site.dataset, release)
        now = ctx.clock.now()
        store.begin_round(session, run.id, item.round, "trained", report, now)
        budget.charge(ctx, session, run, item.round, release)
        if sealed is not None:
            store.put_secret(session, run.id, item.round, sealed)

    job.answer(f"/rounds/{run.id}/{item.round}/report", told, change)
    files.forget(files.weights)


def _enter_round(job: Job, run: Run, number: int, rounds: int) -> Site:
    """Leave what earlier rounds have left behind, for good, and find the data set."""
    with job.ctx.db.session() as session:
        still_active(session, run.id)
        _check_new(session, run.id, number, rounds)
        store.drop_items(session, run.id, before_round=number)
        store.wipe_secrets(session, run.id, below=number)
        site = site_of(session, run)
    wipe(job.ctx, run.id, below=number)
    return site


def _check_new(session: Session, run: str, number: int, rounds: int) -> None:
    """Looked at before the work, and again in the transaction that begins the round: meanwhile
    another worker may have begun a later one."""
    domain.check_new_round(number, store.current_round(session, run), rounds)


def _check_unrevealed(session: Session, run: str) -> None:
    if store.has_revealed(session, run, "measure"):
        raise UnexpectedMessage("This site has given its statistics in this run already.")


def evaluate(job: Job, item: Evaluate) -> None:
    from services.data_node.training import (  # torch: in workers only, when it is needed
        external,
        local,
    )

    ctx, run = job.ctx, job.run(item.run)
    proposal = run.read_proposal()
    decision = _agreed(ctx, proposal, run, item)
    with ctx.db.reading() as session:
        _check_first(session, run, item)
    if len(item.others) > proposal.others:
        raise UnexpectedMessage(
            f"This site is asked to evaluate {len(item.others)} other models; it approved "
            f"{proposal.others}."
        )
    with ctx.db.reading() as session:
        programs.check_approved(session, proposal)
        site = site_of(session, run)
    if item.summed:  # behind all rounds of training
        site = _enter_round(job, run, item.round, proposal.rounds + 1)
    files = RoundFiles(ctx, run.id, item.round)
    stop = Stopping(ctx, run.id, job.item_id, job.held)

    def measured(weights: Path) -> ModelEvaluation:
        if proposal.model.layout is not None:
            return external.evaluate(ctx, proposal, weights, site)
        return local.evaluate(ctx, proposal, item, weights, site, stop)

    domain.check_statistics(proposal.statistics.wanted, item.statistics is not None)
    found = measured(files.fetch_weights(item.weights_digest, item.weights_bytes))
    others = {each.name: measured(files.fetch_model(each)) for each in item.others}
    evaluation = Evaluation(**dict(found), others=others)

    shows_own = figures.shows_own(ctx, proposal, decision)
    told = evaluation if shows_own else figures.withheld(evaluation)
    if item.summed:
        _sum(job, run, item, told, evaluation)
    else:
        job.answer(
            f"/rounds/{run.id}/evaluation",
            told,
            lambda session: _evaluated(ctx, session, run.id, item, evaluation),
        )
    files.forget(files.weights, *(files.model(each.name) for each in item.others))


def _sum(job: Job, run: Run, item: Evaluate, told: Evaluation, found: Evaluation) -> None:
    """Be ready to add what this site has found to the other sites' under masks."""
    ctx, proposal = job.ctx, run.read_proposal()
    names = [each.name for each in item.others]
    values = figures.of_evaluation(found, names, len(proposal.model.classes))
    RoundFiles(ctx, run.id, item.round).keep_values(values)
    state, advertisement = secure.begin_counting(
        proposal, ctx.identity, item.round, len(values), terms_of(proposal, item)
    )
    sealed = secure.seal(state, ctx.secrets, run.id, item.round)

    def change(session: Session) -> None:
        _evaluated(ctx, session, run.id, item, found)
        _check_new(session, run.id, item.round, proposal.rounds + 1)
        store.begin_evaluating(session, run.id, item.round, ctx.clock.now())
        store.put_secret(session, run.id, item.round, sealed)

    report = EvaluationReport(evaluation=told, advertisement=encode_key(advertisement))
    job.answer(f"/rounds/{run.id}/{item.round}/evaluated", report, change)


def _evaluated(ctx: Context, session: Session, run: str, item: Evaluate, found: Evaluation) -> None:
    row = still_active(session, run)
    _check_first(session, row, item)
    store.set_evaluation(session, row, found.scores, ctx.clock.now())


def _check_first(session: Session, run: Run, item: Evaluate) -> None:
    """Figures of model after model would tell of single images, and so would sums over one set of
    sites after another: a site evaluates once, or the same again where nothing has been opened."""
    before = store.evaluations(session, run.id)
    opened = store.has_revealed(session, run.id, "evaluate")
    same = {"round": item.round}
    repeats = item.summed and all(each.model_copy(update=same) == item for each in before)
    if run.evaluation is not None and (opened or not repeats):
        raise UnexpectedMessage("This site has evaluated the run's final model already.")


def _agreed(ctx: Context, proposal: Proposal, run: Run, item: Train | Evaluate) -> Decision:
    """What this site has offered, with which the item agrees."""
    if item.summed and not proposal.sums_figures:
        raise UnexpectedMessage("The approved proposal sums no figures.")
    with ctx.db.reading() as session:
        decision = figures.agreed(session, run.id)
    figures.check_agreed(decision, item, ctx.identity.name)
    return decision
