"""Routes: the privacy ledger. It is read here and written by training alone."""

from __future__ import annotations

from itertools import groupby
from typing import Annotated

from fastapi import APIRouter, Depends

from primia.chassis.auth import require
from primia.chassis.context import Ctx
from primia.chassis.identity import Principal
from primia.chassis.problems import responses
from primia.learning.accounting import epsilon
from services.data_node.privacy import store
from services.data_node.privacy.schemas import Account, Ledger, RunCharge
from services.data_node.privacy.store import Charge

router = APIRouter(prefix="/privacy", tags=["privacy"])
User = Annotated[Principal, Depends(require("user"))]


@router.get("", summary="What training has cost in privacy", responses=responses())
def ledger(ctx: Ctx, _user: User) -> Ledger:
    """By model owner and data set, at this site's δ, against this site's limit."""
    with ctx.db.reading() as session:
        rows = store.charges(session)
    settings = ctx.settings
    rows.sort(key=_account)
    accounts = [
        _read(list(of_one), settings.privacy_epsilon, settings.privacy_delta)
        for _, of_one in groupby(rows, key=_account)
    ]
    return Ledger(accounts=tuple(accounts))


def _account(row: Charge) -> tuple[str, str]:
    return row.owner, row.dataset


def _read(rows: list[Charge], limit: float | None, delta: float) -> Account:
    spent = epsilon(store.releases(rows), delta)
    unprotected = sum(row.release is None for row in rows)
    by_run = {row.run: [each for each in rows if each.run == row.run] for row in rows}
    return Account(
        owner=rows[0].owner,
        dataset=rows[-1].dataset_name,
        dataset_id=rows[0].dataset,
        epsilon=spent,
        delta=delta,
        limit=limit,
        left=None if limit is None else 0.0 if unprotected else max(0.0, limit - spent),
        unprotected=unprotected,
        runs=tuple(_run(run, of_run, delta) for run, of_run in by_run.items()),
    )


def _run(run: str, rows: list[Charge], delta: float) -> RunCharge:
    noisy = all(row.release for row in rows)
    return RunCharge(
        run=run,
        rounds=len(rows),
        steps=sum(row.steps or 0 for row in rows),
        epsilon=epsilon(store.releases(rows), delta) if noisy else None,
        since=min(row.created for row in rows),
    )
