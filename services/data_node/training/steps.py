"""What this site does for each kind of work item: compute, then store state and answer at once.

A handler computes outside of any transaction, from what is stored; then one transaction checks that
the item is still open, changes the round and stores the answer. A crash before it loses nothing but
time (everything is computed again to the same result), one after it repeats the stored answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from sqlalchemy.orm import Session

from primia.aggregation.state import NodeState
from primia.aggregation.terms import RoundId
from primia.aggregation.wire import Header, Kind
from primia.chassis.context import Context
from primia.chassis.identity import encode_key
from primia.chassis.leases import Held
from primia.errors import PrimiaError, UnexpectedMessage
from primia.messages.common import Message
from primia.messages.rounds import (
    Confirm,
    Decision,
    Evaluate,
    Evaluation,
    Measure,
    MeasureReport,
    ModelEvaluation,
    Proposal,
    Review,
    Scores,
    ShareKeys,
    Stop,
    Train,
    Unmask,
    Upload,
    WorkItem,
    round_terms,
)
from services.data_node.training import approval, budget, domain, secure, store
from services.data_node.training.domain import Phase, RoundKind
from services.data_node.training.round_files import RoundFiles, wipe
from services.data_node.training.site import Site, site_of
from services.data_node.training.stopping import Interrupted, RunEnded, Stopping
from services.data_node.training.store import Round, Run, WorkRow

# Of training with noise the owner learns nothing that the noise does not cover: with DP-SGD that is
# the training itself, with central privacy whatever a site finds by itself.
UNTOLD: Mapping[str, None] = {"loss": None, "accuracy": None}
UNSCORED: Mapping[str, None] = {**UNTOLD, "received": None}


@dataclass(frozen=True)
class Job:
    """An item in work, under its lease."""

    ctx: Context
    item_id: str
    held: Held

    def run(self, run: str) -> Run:
        """The run, which must be active here."""
        with self.ctx.db.reading() as session:
            row = session.get(Run, run)
        if row is None or row.state != "active":
            state = row.state if row else "not known"
            raise UnexpectedMessage(f"This site does not take part in the run: it is {state} here.")
        return row

    def answer(
        self, path: str, message: Message | None, change: Callable[[Session], object] | None = None
    ) -> None:
        """Store the answer and what changes with it, if the item is still open and ours."""
        with self.ctx.db.session() as session:
            row = session.get(WorkRow, self.item_id, with_for_update=True)
            if row is None or row.state != "open" or self.held.lost.is_set():
                raise Interrupted
            if change is not None:
                change(session)
            body = None if message is None else message.model_dump_json()
            store.set_answer(row, path, body, self.ctx.clock.now())


def review(job: Job, item: Review) -> None:
    """A row to decide on; under the policy "auto" the decision itself."""
    from services.data_node.training import fitting  # torch: in workers only

    ctx = job.ctx
    fitting.check_memory(item.proposal)
    with ctx.db.session() as session:
        row = session.get(WorkRow, job.item_id, with_for_update=True)
        if row is None or row.state != "open":
            return
        if item.proposal.run != item.run:
            raise UnexpectedMessage("The proposal is for another run than the request.")
        run = store.propose(session, item.proposal, ctx.clock.now())
        if ctx.settings.approval == "auto":
            approval.decide_automatically(ctx, session, run)
        else:
            store.set_item_state(row, "waiting")


def refuse_review(job: Job, item: Review, error: PrimiaError) -> None:
    """A proposal that cannot even be looked at is refused."""
    reason = domain.outward(error).detail
    job.answer(f"/rounds/{item.run}/decision", Decision(accepted=False, reason=reason))


def measure(job: Job, item: Measure) -> None:
    """Sums over this site's training images, to be added to the other sites' under masks; once a
    run, since two sums over different sites would tell of the sites that only one has."""
    from services.data_node.training import local  # torch: in workers only, when it is needed

    ctx, run = job.ctx, job.run(item.run)
    proposal = run.read_proposal()
    if not proposal.statistics.wanted:
        raise UnexpectedMessage("The approved proposal asks for no statistics.")
    with ctx.db.reading() as session:
        if store.has_revealed_statistics(session, run.id):
            raise UnexpectedMessage("This site has given its statistics in this run already.")
    site = _enter_round(job, run, item.round, proposal.rounds)
    stop = Stopping(ctx, run.id, job.item_id, job.held)
    values = local.measure(ctx, proposal, site, stop)
    RoundFiles(ctx, run.id, item.round).keep_values(values)
    terms = round_terms(proposal, "")
    state, advertisement = secure.begin_measuring(
        proposal, ctx.identity, item.round, len(values), terms
    )
    sealed = secure.seal(state, ctx.secrets, run.id, item.round)

    def change(session: Session) -> None:
        _still_active(session, run.id)
        store.begin_measuring(session, run.id, item.round, ctx.clock.now())
        store.put_secret(session, run.id, item.round, sealed)

    report = MeasureReport(advertisement=encode_key(advertisement))
    job.answer(f"/rounds/{run.id}/{item.round}/measured", report, change)


def train(job: Job, item: Train) -> None:
    from services.data_node.training import local  # torch: in workers only, when it is needed

    ctx, run = job.ctx, job.run(item.run)
    proposal = run.read_proposal()
    domain.check_statistics(proposal.statistics.wanted, item.statistics is not None)
    if not proposal.planned:
        raise UnexpectedMessage("The approved proposal has no round of training.")
    site = _enter_round(job, run, item.round, proposal.rounds)
    files = RoundFiles(ctx, run.id, item.round)
    weights = files.fetch_weights(item.weights_digest, item.weights_bytes)
    stop = Stopping(ctx, run.id, job.item_id, job.held)
    with ctx.db.reading() as session:
        release = budget.check_round(ctx, session, proposal, site.dataset, site.manifest)
    result = local.train(ctx, proposal, item, weights, site, files.read_carried(), stop, release)
    files.keep_change(result.change)
    if result.carried is not None:
        files.keep_carried(result.carried)
    report = result.report()
    told = report if release is None else report.model_copy(update=UNTOLD)
    if not _tells_scores(ctx, proposal):
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
            round_terms(proposal, item.weights_digest, item.statistics),
        )
        sealed = secure.seal(state, ctx.secrets, run.id, item.round)
        update = {"advertisement": encode_key(advertisement), "exponents": exponents}
        told = told.model_copy(update=update)

    def change(session: Session) -> None:
        _still_active(session, run.id)
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
        current = store.current_round(session, run.id)
        domain.check_new_round(number, current, rounds)
        store.drop_items(session, run.id, before_round=number)
        store.wipe_secrets(session, run.id, below=number)
        site = site_of(session, run)
    wipe(job.ctx, run.id, below=number)
    return site


def exchange(job: Job, item: ShareKeys | Confirm | Unmask) -> None:
    """A step of secure aggregation whose answer is a message."""
    ctx, run = job.ctx, job.run(item.run)
    proposal = run.read_proposal()
    here = _round_at(job, item, proposal)
    with ctx.db.reading() as session:
        terms = _terms(proposal, store.beginning(session, run.id, item.round))
    verify, sign = secure.verifier(proposal, terms), secure.signer(ctx.identity, terms)
    step = secure.stepper(item, verify, sign)
    state, message = step(_state(job, item))
    sealed = secure.seal(state, ctx.secrets, run.id, item.round)

    def change(session: Session) -> None:
        _advance(session, run.id, item.round, here)
        store.put_secret(session, run.id, item.round, sealed)

    path = f"/rounds/{run.id}/{item.round}/{_PATHS[item.kind]}"
    job.answer(path, message, change)


_PATHS: Mapping[str, str] = {
    "share_keys": "envelopes",
    "confirm": "confirmation",
    "unmask": "shares",
}


def upload(job: Job, item: Upload) -> None:
    """The frame is written to disk before it is sent; what it was made from is deleted then."""
    ctx, run = job.ctx, job.run(item.run)
    proposal = run.read_proposal()
    here = _round_at(job, item, proposal)
    files = RoundFiles(ctx, run.id, item.round)
    sealed = None
    if here.secure:
        state = _masked(files, _state(job, item), item, here.kind, proposal)
        sealed = secure.seal(state, ctx.secrets, run.id, item.round)
    else:
        change = files.read_change()
        files.keep_update(_header(item, Kind.PLAIN, len(change)), change)

    def advance(session: Session) -> None:
        _advance(session, run.id, item.round, here)
        if sealed is not None:
            store.put_secret(session, run.id, item.round, sealed)

    job.answer(f"/rounds/{run.id}/{item.round}/update", None, advance)
    files.forget(files.change, files.values)


def _masked(
    files: RoundFiles, state: NodeState, item: Upload, kind: RoundKind, proposal: Proposal
) -> NodeState:
    """Write the masked frame; the state after it."""
    if kind == "measure":
        state, integers = secure.mask_integers(state, item, files.read_values())
        files.keep_update(_header(item, Kind.INTEGERS, len(integers)), integers)
        return state
    state, vector = secure.mask(state, item, files.read_change(), proposal)
    files.keep_update(_header(item, Kind.MASKED, len(vector)), vector)
    return state


def _header(item: Upload, kind: Kind, count: int) -> Header:
    return Header(kind, RoundId(bytes.fromhex(item.run), item.round), count)


def evaluate(job: Job, item: Evaluate) -> None:
    from services.data_node.training import local  # torch: in workers only, when it is needed

    ctx, run = job.ctx, job.run(item.run)
    if run.evaluation is not None:  # scores of model after model would tell of single images
        raise UnexpectedMessage("This site has evaluated the run's final model already.")
    proposal = run.read_proposal()
    if len(item.others) > proposal.others:
        raise UnexpectedMessage(
            f"This site is asked to evaluate {len(item.others)} other models; it approved "
            f"{proposal.others}."
        )
    with ctx.db.reading() as session:
        site = site_of(session, run)
    files = RoundFiles(ctx, run.id, item.round)
    stop = Stopping(ctx, run.id, job.item_id, job.held)

    def measured(weights: bytes) -> ModelEvaluation:
        return local.evaluate(ctx, proposal, item, weights, site, stop)

    domain.check_statistics(proposal.statistics.wanted, item.statistics is not None)
    found = measured(files.fetch_weights(item.weights_digest, item.weights_bytes))
    others = {each.name: measured(files.fetch_model(each)) for each in item.others}
    evaluation = Evaluation(**dict(found), others=others)

    def change(session: Session) -> None:
        row = _still_active(session, run.id)
        store.set_evaluation(session, row, evaluation.scores, ctx.clock.now())

    told = evaluation if _tells_scores(ctx, proposal) else _withheld(evaluation)
    job.answer(f"/rounds/{run.id}/evaluation", told, change)
    files.forget(files.weights, *(files.model(each.name) for each in item.others))


def _tells_scores(ctx: Context, proposal: Proposal) -> bool:
    return ctx.settings.share_scores and proposal.privacy.central is None


def _withheld(evaluation: Evaluation) -> Evaluation:
    """That this site has looked at each model, and nothing of what it found."""
    nothing = Scores(samples=0)
    others = {name: ModelEvaluation(scores=nothing) for name in evaluation.others}
    return Evaluation(scores=nothing, others=others)


def stop(job: Job, item: Stop) -> None:
    """The run is over: forget what was kept for it, and say so."""
    ctx = job.ctx

    path = f"/rounds/{item.run}/acknowledgement"
    job.answer(path, None, lambda session: end_run(ctx, session, item))
    wipe(ctx, item.run)


def end_run(ctx: Context, session: Session, item: Stop) -> None:
    """Mark the run as ended; what trains for it notices at its next batch."""
    run = session.get(Run, item.run, with_for_update=True)
    if run is None or run.state in domain.ENDED:
        return
    state: domain.RunState = item.state
    if run.state == "pending" and state == "finished":
        state = "failed"
        reason = "The run finished without this site."
    else:
        reason = item.reason
    store.end(session, run, state, reason, ctx.clock.now())


def handle(job: Job, item: WorkItem) -> None:
    """Store the answer to the item, or raise."""
    match item:
        case Review():
            review(job, item)
        case Measure():
            measure(job, item)
        case Train():
            train(job, item)
        case ShareKeys() | Confirm() | Unmask():
            exchange(job, item)
        case Upload():
            upload(job, item)
        case Evaluate():
            evaluate(job, item)
        case Stop():
            stop(job, item)


@dataclass(frozen=True)
class _At:
    """Where a round is at this site, and the phase that the item in work leads to."""

    kind: RoundKind
    secure: bool
    before: Phase
    after: Phase


def _terms(proposal: Proposal, began: Train | Measure) -> bytes:
    if isinstance(began, Measure):
        return round_terms(proposal, "")
    return round_terms(proposal, began.weights_digest, began.statistics)


def _round_at(job: Job, item: ShareKeys | Upload | Confirm | Unmask, proposal: Proposal) -> _At:
    """Raises UnexpectedMessage if the round is not at this step or no longer the latest one."""
    with job.ctx.db.reading() as session:
        row = session.get(Round, (item.run, item.round))
        latest = store.current_round(session, item.run)
    phase = cast("Phase | None", row.phase if row else None)
    kind = cast("RoundKind", row.kind if row else "train")
    is_secure = proposal.secure or kind == "measure"
    after = domain.next_phase(item.kind, phase, secure=is_secure)
    if phase is None or item.round != latest:
        raise UnexpectedMessage(f"Round {item.round} is over at this site.")
    return _At(kind, is_secure, phase, after)


def _state(job: Job, item: ShareKeys | Upload | Confirm | Unmask) -> NodeState:
    with job.ctx.db.reading() as session:
        sealed = store.secret(session, item.run, item.round)
    return secure.unseal(sealed, job.ctx.secrets, item.run, item.round)


def _advance(session: Session, run: str, number: int, here: _At) -> None:
    _still_active(session, run)
    row = store.find_round(session, run, number)
    if row is None or row.phase != here.before:
        raise Interrupted
    row.phase = here.after


def _still_active(session: Session, run: str) -> Run:
    row = store.find_run(session, run, lock=True)
    if row.state != "active":
        raise RunEnded("The run has ended at this site.")
    return row
