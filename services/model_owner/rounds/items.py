"""The work item that the owner waits for from a node, built from rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sqlalchemy.orm import Session

from primia.chassis.context import Context
from primia.messages.rounds import (
    Confirm,
    Review,
    ShareKeys,
    Stop,
    Unmask,
    Upload,
    WorkItem,
)
from services.model_owner.rounds import beginning, secure, store
from services.model_owner.rounds.answers import Place
from services.model_owner.rounds.domain import Kind, Stage
from services.model_owner.rounds.tables import Round, Run, Site


def work_for(ctx: Context, session: Session, node: str) -> WorkItem | None:
    """One item, or None: runs that have ended first, then the present one."""
    for run, site in store.places(session, node):
        kind = Place(ctx, session, run, site).wanted()
        if kind is not None:
            return _item(session, run, site, kind)
    return None


def _item(session: Session, run: Run, site: Site, kind: Kind) -> WorkItem:
    row = store.present_round(session, run)
    if row is not None:
        return _ROUND_ITEMS[kind](session, run, row, site.node)
    if kind == "review":
        return Review(run=run.id, proposal=store.proposal_of(run))
    if kind == "evaluate":
        return beginning.evaluate(session, run).model_copy(
            update={"summed": {}, "counted": {}, "tested": {}}
        )
    return Stop.model_validate({"run": run.id, "state": run.state, "reason": run.reason})


def _begin(session: Session, run: Run, row: Round, _node: str) -> WorkItem:
    return beginning.of_round(session, run, row)


def _train(session: Session, run: Run, row: Round, node: str) -> WorkItem:
    item, settings = beginning.of_round(session, run, row), store.request_of(run).training
    if settings.optimiser_state == "kept" or settings.local_stopping is not None:
        return item.model_copy(update={"uncounted": store.uncounted(session, run, node)})
    return item


def _share_keys(session: Session, run: Run, row: Round, _node: str) -> WorkItem:
    return ShareKeys(run=run.id, round=row.number, roster=secure.advertisements(session, row))


def _upload(session: Session, run: Run, row: Round, node: str) -> WorkItem:
    samples = {
        contribution.node: int(contribution.report["samples"])
        for contribution in store.contributions(session, row.id)
        if row.purpose == "train" and contribution.stage >= Stage.TRAINED and contribution.report
    }
    if not row.secure:  # the others' may not have come yet, and an item never changes
        return Upload(run=run.id, round=row.number, samples={node: samples[node]})
    bounds = secure.roster(session, run, row).exponents
    return Upload(
        run=run.id,
        round=row.number,
        samples=samples,
        envelopes=store.inbox(session, row.id, node),
        exponents={"parameters": bounds[0], "buffers": bounds[1]},
    )


def _confirm(session: Session, run: Run, row: Round, _node: str) -> WorkItem:
    return Confirm(
        run=run.id,
        round=row.number,
        members=_members(session, run, row),
        survivors=secure.survivors(session, row),
    )


def _members(session: Session, run: Run, row: Round) -> tuple[str, ...] | None:
    """For sites that have heard from their neighbours only."""
    if store.proposal_of(run).sparse is None:
        return None
    return tuple(sorted(store.envelopes(session, row.id)))


def _unmask(session: Session, run: Run, row: Round, _node: str) -> WorkItem:
    confirmations = {
        contribution.node: contribution.confirmation
        for contribution in store.contributions(session, row.id)
        if contribution.stage >= Stage.CONFIRMED and contribution.confirmation
    }
    return Unmask(
        run=run.id,
        round=row.number,
        members=_members(session, run, row),
        survivors=secure.survivors(session, row),
        confirmations=confirmations,
    )


_ROUND_ITEMS: Mapping[Kind, Callable[[Session, Run, Round, str], WorkItem]] = {
    "measure": _begin,
    "train": _train,
    "evaluate": _begin,
    "share_keys": _share_keys,
    "upload": _upload,
    "confirm": _confirm,
    "unmask": _unmask,
}
