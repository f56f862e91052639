"""The round's public facts of secure aggregation, rebuilt from rows and always verified."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.orm import Session

from primia.aggregation import server
from primia.aggregation.central import exponent
from primia.aggregation.keys import Advertisement, Verify
from primia.aggregation.roster import Roster
from primia.aggregation.survivors import Outcome
from primia.aggregation.terms import Groups, RoundId
from primia.chassis.context import Context
from primia.chassis.identity import Principal, decode_key
from primia.errors import InvalidInput, MalformedMessage
from primia.learning import statistics
from primia.messages.rounds import TrainReport, terms_of
from services.model_owner.rounds import beginning, limits, store
from services.model_owner.rounds.domain import Stage, at_least
from services.model_owner.rounds.tables import Round, Run


def verifier(session: Session, run: Run, row: Round) -> Verify:
    """Signatures by the keys that were enrolled when the run was proposed, over what its nodes must
    agree on: the proposal and what the present round starts from."""
    terms = terms_of(store.proposal_of(run), beginning.of_round(session, run, row))
    keys = {
        row.node: Principal(name=row.node, role="data_node", public_key=row.public_key)
        for row in store.sites(session, run.id)
    }

    def verify(node: str, message: bytes, signature: bytes) -> bool:
        try:
            keys[node].verify(message + terms, signature)
        except (KeyError, MalformedMessage):
            return False
        return True

    return verify


def round_id(run: Run, row: Round) -> RoundId:
    return RoundId(bytes.fromhex(run.id), row.number)


def groups(run: Run, row: Round) -> Groups:
    """The vector that the round sums."""
    if row.purpose == "measure":
        card = store.proposal_of(run).model
        return Groups(statistics.length(len(card.classes), card.channels), 0)
    if row.purpose == "evaluate":
        return Groups(beginning.evaluation_length(run), 0)
    return Groups(run.parameters, run.buffers)


def advertisements(session: Session, row: Round) -> dict[str, str]:
    """Of all who have done what the round begins with, as they were sent."""
    return {
        contribution.node: contribution.report["advertisement"]
        for contribution in store.contributions(session, row.id)
        if contribution.stage >= Stage.TRAINED and contribution.report
    }


def decoded(values: Mapping[str, str]) -> dict[str, bytes]:
    return {node: decode_key(value) for node, value in values.items()}


def roster(session: Session, run: Run, row: Round) -> Roster:
    return Roster.of(decoded(advertisements(session, row)), verifier(session, run, row))


def envelopes(session: Session, row: Round) -> dict[str, dict[str, bytes]]:
    return {dealer: decoded(sealed) for dealer, sealed in store.envelopes(session, row.id).items()}


def survivors(session: Session, row: Round) -> tuple[str, ...]:
    return at_least(store.members(store.contributions(session, row.id)), Stage.ABSORBED)


def outcome(session: Session, row: Round, known: Roster) -> Outcome:
    return Outcome.of(known, store.envelopes(session, row.id), survivors(session, row))


def check_advertisement(
    session: Session, run: Run, row: Round, node: str, text: str
) -> Advertisement:
    """This node's signed keys for this round.

    Raises MalformedMessage, InconsistentRound, InvalidSignature.
    """
    return server.check_advertisement(
        decode_key(text),
        node,
        round_id(run, row),
        row.needed,
        groups(run, row),
        verifier(session, run, row),
        store.proposal_of(run).assumed(measuring=row.purpose != "train"),
    )


def check_counting(session: Session, run: Run, row: Round, node: str, text: str) -> None:
    """As ``check_advertisement``, of a round that sums integers alone."""
    found = check_advertisement(session, run, row, node, text)
    if (found.samples, found.exponents) != (1, (0, 0)):
        raise InvalidInput("A round that sums integers weighs and scales nothing.")


def check_report(
    ctx: Context, session: Session, run: Run, row: Round, node: str, report: TrainReport
) -> None:
    """The report carries this node's signed keys for this round, and says the same as they do; its
    exponents are of a change within the run's bounds.

    Raises InvalidInput, InvalidUpdate, MalformedMessage, InconsistentRound, InvalidSignature.
    """
    if report.advertisement is None:
        raise InvalidInput("The report of a secure round needs the advertisement of its keys.")
    found = check_advertisement(session, run, row, node, report.advertisement)
    stated = (report.exponents.get("parameters"), report.exponents.get("buffers"))
    central = store.proposal_of(run).privacy.central
    if central is not None:
        wanted = exponent(central.clip_norm, central.noise_multiplier, row.needed)
        if (found.samples, found.exponents) != (1, (wanted, wanted)):
            raise InvalidInput("With central privacy all sites weigh and scale the same.")
    elif (found.samples, found.exponents) != (report.samples, stated):
        raise InvalidInput("The report's samples or exponents differ from those advertised.")
    else:
        limits.of_run(ctx, run).check_exponents(found.exponents)
