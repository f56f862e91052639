"""What this site does for each kind of work item: compute, then store state and answer at once.

A handler computes outside of any transaction, from what is stored; then one transaction checks that
the item is still open, changes the round and stores the answer. A crash before it loses nothing but
time (everything is computed again to the same result), one after it repeats the stored answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from sqlalchemy.orm import Session

from primia.aggregation.state import NodeState
from primia.aggregation.terms import RoundId
from primia.aggregation.wire import Header, Kind
from primia.chassis.context import Context
from primia.errors import PrimiaError, UnexpectedMessage
from primia.messages.rounds import (
    Beginning,
    Confirm,
    Decision,
    Evaluate,
    Measure,
    Proposal,
    Review,
    ShareKeys,
    Stop,
    Train,
    Unmask,
    Upload,
    WorkItem,
    terms_of,
)
from services.data_node.programs import store as programs
from services.data_node.training import approval, domain, figures, secure, store
from services.data_node.training.computing import evaluate, measure, train
from services.data_node.training.domain import Phase, RoundKind
from services.data_node.training.job import Job, still_active
from services.data_node.training.round_files import RoundFiles, wipe
from services.data_node.training.stopping import Interrupted
from services.data_node.training.tables import Round, Run, WorkRow


def review(job: Job, item: Review) -> None:
    """A row to decide on; under the policy "auto" the decision itself."""
    from services.data_node.training import fitting  # torch: in workers only

    ctx = job.ctx
    fitting.check(ctx, item.proposal)
    with ctx.db.session() as session:
        row = session.get(WorkRow, job.item_id, with_for_update=True)
        if row is None or row.state != "open":
            return
        if item.proposal.run != item.run:
            raise UnexpectedMessage("The proposal is for another run than the request.")
        run = store.propose(session, item.proposal, ctx.clock.now())
        programs.take_in(session, item.proposal, ctx.clock.now())
        if ctx.settings.approval == "auto":
            approval.decide_automatically(ctx, session, run)
        else:
            store.set_item_state(row, "waiting")


def refuse_review(job: Job, item: Review, error: PrimiaError) -> None:
    """A proposal that cannot even be looked at is refused."""
    reason = domain.outward(error).detail
    job.answer(f"/rounds/{item.run}/decision", Decision(accepted=False, reason=reason))


def exchange(job: Job, item: ShareKeys | Confirm | Unmask) -> None:
    """A step of secure aggregation whose answer is a message."""
    ctx, run = job.ctx, job.run(item.run)
    proposal = run.read_proposal()
    here = _round_at(job, item, proposal)
    with ctx.db.reading() as session:
        terms = terms_of(proposal, store.beginning(session, run.id, item.round))
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
        with ctx.db.reading() as session:
            began = store.beginning(session, run.id, item.round)
        state = _masked(files, _state(job, item), item, began, proposal)
        sealed = secure.seal(state, ctx.secrets, run.id, item.round)
    else:
        files.send_change()

    def advance(session: Session) -> None:
        _advance(session, run.id, item.round, here)
        if sealed is not None:
            store.put_secret(session, run.id, item.round, sealed)

    job.answer(f"/rounds/{run.id}/{item.round}/update", None, advance)
    files.forget(files.change, files.values)


def _masked(
    files: RoundFiles, state: NodeState, item: Upload, began: Beginning, proposal: Proposal
) -> NodeState:
    """Write the masked frame; the state after it."""
    if not isinstance(began, Train):
        values = files.read_values()
        if isinstance(began, Evaluate):
            values = figures.added(values, began, state)
        state, integers = secure.mask_integers(state, item, values)
        files.keep_update(_header(item, Kind.INTEGERS, len(integers)), integers)
        return state
    if began.summed:
        values = figures.added(files.read_values(), began, state)
        state, vector, integers = secure.mask_both(state, item, files.read_change(), values)
        header = _header(item, Kind.MASKED, len(vector), len(integers))
        files.keep_update(header, vector, integers)
        return state
    state, vector = secure.mask(state, item, files.read_change(), proposal)
    files.keep_update(_header(item, Kind.MASKED, len(vector)), vector)
    return state


def _header(item: Upload, kind: Kind, count: int, integers: int = 0) -> Header:
    return Header(kind, RoundId(bytes.fromhex(item.run), item.round), count, integers)


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
    still_active(session, run)
    row = store.find_round(session, run, number)
    if row is None or row.phase != here.before or number != store.current_round(session, run):
        raise Interrupted
    row.phase = here.after
