"""What nodes answer: each answer is checked when it comes, stored once, and takes the run forward.

The same answer again changes nothing; another one, or one that the run does not wait for, is an
UnexpectedMessage. An answer that is wrong in itself is refused and changes nothing: the node may
send a right one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sqlalchemy.orm import Session

from primia.aggregation import server
from primia.chassis.context import Context
from primia.chassis.identity import decode_key
from primia.errors import InvalidInput, UnexpectedMessage
from primia.messages.common import Message
from primia.messages.rounds import (
    Confirmation,
    Decision,
    Envelopes,
    Evaluation,
    EvaluationReport,
    Failure,
    MeasureReport,
    ModelEvaluation,
    Shares,
    TrainReport,
)
from services.model_owner.rounds import progress, secure, store
from services.model_owner.rounds.course import LAST
from services.model_owner.rounds.domain import (
    Kind,
    move_site,
    stage_after,
    wanted_in_round,
    wanted_kind,
)
from services.model_owner.rounds.tables import (
    REASON,
    Contribution,
    Envelope,
    Round,
    Run,
    Site,
)

ASK_AGAIN = "Ask for work again: GET /node/work."


def digest(message: Message) -> str:
    return hashlib.sha256(message.model_dump_json().encode()).hexdigest()


@dataclass(frozen=True)
class Place:
    """A node's place in a run, and in its present round if an item is about that."""

    ctx: Context
    session: Session
    run: Run
    site: Site

    def wanted(self) -> Kind | None:
        row = store.present_round(self.session, self.run)
        if row is not None:
            members = store.members(store.contributions(self.session, row.id))
            return wanted_in_round(
                store.phase_of(row),
                self.site.node,
                members,
                secure=row.secure,
                purpose=store.purpose_of(row),
            )
        return wanted_kind(
            store.state_of(self.run), store.site_state(self.site), answered=self._answered()
        )

    def _answered(self) -> bool:
        if progress.ended(self.run):
            return self.site.acknowledged
        return self.site.evaluation is not None or self.site.failed is not None

    def refuse(self, kind: str, where: str) -> UnexpectedMessage:
        return UnexpectedMessage(
            f"{where} waits for {self.wanted() or 'nothing'} from {self.site.node}, not for an "
            f"answer to {kind}.",
            hint=ASK_AGAIN,
        )

    def moved(self) -> None:
        self.session.flush()
        progress.advance(self.ctx, self.session, self.run)


def place(ctx: Context, session: Session, run_id: str, node: str) -> Place:
    """Locks the run. Raises NotFound for a run that the node takes no part in."""
    store.check_site(session, run_id, node)
    run = store.find(session, run_id, lock=True)
    return Place(ctx, session, run, store.site(session, run_id, node))


def is_repeat(given: dict[str, str], kind: str, found: str) -> bool:
    """Whether exactly this answer has been given; raises UnexpectedMessage for another one."""
    if kind not in given:
        return False
    if given[kind] != found:
        raise UnexpectedMessage(f"Another answer to {kind} has been given already.", hint=ASK_AGAIN)
    return True


def decide(here: Place, decision: Decision) -> None:
    site, found = here.site, digest(decision)
    if is_repeat(site.answers, "review", found):
        return
    if here.wanted() != "review":
        raise here.refuse("review", f"Run {here.run.id}")
    if decision.accepted and (decision.samples < 1 or len(decision.classes) < 1):
        raise InvalidInput("An accepted run needs the samples and classes of the data set.")
    site.answers = {**site.answers, "review": found}
    site.state = move_site(store.site_state(site), "accepted" if decision.accepted else "refused")
    site.reason, site.samples = decision.reason[:REASON], decision.samples
    site.classes = list(decision.classes)
    site.sums = decision.model_dump(include={"summed", "counted", "tested"}, exclude_none=True)
    if not decision.accepted:
        site.engaged, site.acknowledged = False, True
    store.record(
        here.session,
        here.run.id,
        here.ctx.clock.now(),
        site.state,
        node=site.node,
        samples=decision.samples,
        reason=site.reason,
    )
    here.moved()


@dataclass(frozen=True)
class Seat:
    """A node's place in one open round that waits for its answer of this kind."""

    here: Place
    row: Round
    contribution: Contribution
    kind: Kind

    def give(self, found: str, size: int) -> None:
        """Count the answer and let the run go on; the caller has stored its content."""
        stage = stage_after(self.kind, store.phase_of(self.row), secure=self.row.secure)
        self.contribution.stage = stage
        self.contribution.answers = {**self.contribution.answers, self.kind: found}
        self.contribution.bytes_up += size
        store.record(
            self.here.session,
            self.here.run.id,
            self.here.ctx.clock.now(),
            stage.name.lower(),
            round=self.row.number,
            node=self.contribution.node,
            bytes=size,
        )
        self.here.moved()


def seat(here: Place, number: int, kind: Kind, found: str | None) -> Seat | None:
    """The seat, if the round waits for this answer; None if exactly this answer was given.

    ``found``: digest of the answer, None before it is known. Raises UnexpectedMessage.
    """
    row = store.find_round(here.session, here.run.id, number)
    contribution = here.session.get(Contribution, (row.id, here.site.node)) if row else None
    where = f"Round {number} of run {here.run.id}"
    if row is None or contribution is None:
        raise here.refuse(kind, where)
    if found is not None and is_repeat(contribution.answers, kind, found):
        return None
    if number != here.run.number or here.wanted() != kind:
        raise here.refuse(kind, where)
    return Seat(here, row, contribution, kind)


def report(here: Place, number: int, message: TrainReport, size: int) -> None:
    found = digest(message)
    taken = seat(here, number, "train", found)
    if taken is None:
        return
    if here.run.secure:
        secure.check_report(here.ctx, here.session, here.run, taken.row, here.site.node, message)
    elif message.advertisement is not None or message.exponents:
        raise InvalidInput("A plain round takes no advertisement and no exponents.")
    taken.contribution.report = message.model_dump(mode="json")
    taken.give(found, size)


def measured(here: Place, number: int, message: MeasureReport, size: int) -> None:
    found = digest(message)
    taken = seat(here, number, "measure", found)
    if taken is None:
        return
    name, advertisement = here.site.node, message.advertisement
    secure.check_counting(here.session, here.run, taken.row, name, advertisement)
    taken.contribution.report = message.model_dump(mode="json")
    taken.give(found, size)


def share(here: Place, number: int, message: Envelopes, size: int) -> None:
    found = digest(message)
    taken = seat(here, number, "share_keys", found)
    if taken is None:
        return
    known = secure.roster(here.session, here.run, taken.row)
    server.check_envelopes(known, here.site.node, secure.decoded(message.envelopes))
    here.session.add_all(
        Envelope(round=taken.row.id, dealer=here.site.node, holder=holder, sealed=sealed)
        for holder, sealed in message.envelopes.items()
    )
    taken.give(found, size)


def confirm(here: Place, number: int, message: Confirmation, size: int) -> None:
    found = digest(message)
    taken = seat(here, number, "confirm", found)
    if taken is None:
        return
    known = secure.roster(here.session, here.run, taken.row)
    server.check_confirmation(
        known,
        secure.outcome(here.session, taken.row, known),
        here.site.node,
        decode_key(message.signature),
        secure.verifier(here.session, here.run, taken.row),
    )
    taken.contribution.confirmation = message.signature
    taken.give(found, size)


def reveal(here: Place, number: int, message: Shares, size: int) -> None:
    found = digest(message)
    taken = seat(here, number, "unmask", found)
    if taken is None:
        return
    known = secure.roster(here.session, here.run, taken.row)
    data = decode_key(message.reveal)
    server.check_reveal(
        known,
        secure.envelopes(here.session, taken.row),
        secure.outcome(here.session, taken.row, known),
        here.site.node,
        data,
    )
    taken.contribution.reveal = here.ctx.secrets.seal(data, purpose(taken.row, here.site.node))
    taken.give(found, size)


def purpose(row: Round, node: str) -> str:
    """What the sealed reveal of a node is bound to."""
    return f"reveal/{row.id}/{node}"


def evaluated(here: Place, message: Evaluation) -> None:
    site, found = here.site, digest(message)
    if is_repeat(site.answers, "evaluate", found):
        return
    if here.wanted() != "evaluate":
        raise here.refuse("evaluate", f"Run {here.run.id}")
    _keep_evaluation(here, message)
    site.answers = {**site.answers, "evaluate": found}
    here.moved()


def ready_to_sum(here: Place, number: int, message: EvaluationReport, size: int) -> None:
    """A site has evaluated, in a round that sums what it found."""
    found = digest(message)
    taken = seat(here, number, "evaluate", found)
    if taken is None:
        return
    name, advertisement = here.site.node, message.advertisement
    secure.check_counting(here.session, here.run, taken.row, name, advertisement)
    _keep_evaluation(here, message.evaluation)
    taken.contribution.report = {"advertisement": advertisement}
    taken.give(found, size)


def _keep_evaluation(here: Place, message: Evaluation) -> None:
    """What the site shows of its own."""
    _check_evaluation(here, message)
    site, scores = here.site, message.scores.model_dump(mode="json")
    site.evaluation = scores
    site.evaluations = {
        name: given.model_dump(mode="json", include=set(ModelEvaluation.model_fields))
        for name, given in {LAST: message, **message.others}.items()
    }
    now = here.ctx.clock.now()
    store.record(here.session, here.run.id, now, "evaluated", node=site.node, **scores)


def _check_evaluation(here: Place, message: Evaluation) -> None:
    """Of exactly the models asked for, in the model's classes."""
    asked = {each.name for each in store.others(here.run)}
    if set(message.others) != asked:
        raise InvalidInput(f"The models to evaluate as well are: {', '.join(sorted(asked))}.")
    classes = len(store.proposal_of(here.run).model.classes)
    for given in (message, *message.others.values()):
        for part in (given.validation, given.test):
            if part is not None and len(part.confusion) != classes:
                raise InvalidInput(f"The counts are not of the model's {classes} classes.")


def acknowledge(here: Place) -> None:
    if not progress.ended(here.run):
        raise here.refuse("stop", f"Run {here.run.id}")
    here.site.acknowledged = True


def failed(here: Place, message: Failure) -> None:
    """This site cannot go on: out of the review, of the round, or of the evaluation. A failure in
    a round that is over changes nothing."""
    reason = f"{message.code}: {message.detail}"
    kind = here.wanted()
    if kind == "review":
        refusal = Decision(accepted=False, reason=reason[:REASON])
        decide(here, refusal)
        return
    row = store.present_round(here.session, here.run)
    if row is not None and message.round in (None, row.number):
        contribution = here.session.get(Contribution, (row.id, here.site.node))
        if contribution is not None and contribution.dropped is None:
            progress.drop(here.ctx, here.session, here.run, row, contribution, reason)
    elif kind == "evaluate":
        here.site.failed = reason[:REASON]
    here.moved()
