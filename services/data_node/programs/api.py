"""Routes: programs that runs have come with, and this site's approval of them by their hash."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from primia.chassis.auth import require
from primia.chassis.context import Ctx
from primia.chassis.identity import Principal
from primia.chassis.problems import responses
from primia.chassis.telemetry import get_logger
from primia.learning.programs.document import Program
from primia.messages.common import Digest
from primia.messages.programs import (
    ProgramDescription,
    ProgramList,
    ProgramReport,
    ProgramSummary,
)
from services.data_node.programs import store
from services.data_node.programs.store import KnownProgram

router = APIRouter(prefix="/programs", tags=["programs"])
User = Annotated[Principal, Depends(require("user"))]
log = get_logger(__name__)


@router.get("", summary="List the programs; those that wait first", responses=responses())
def listing(ctx: Ctx, _user: User) -> ProgramList:
    with ctx.db.reading() as session:
        rows = store.programs(session)
    found = (_report(row) for row in rows)
    fields = set(ProgramSummary.model_fields)
    return ProgramList(
        programs=tuple(ProgramSummary(**each.model_dump(include=fields)) for each in found)
    )


@router.get("/{digest}", summary="A program, described", responses=responses(404, 422))
def show(ctx: Ctx, _user: User, digest: Digest) -> ProgramReport:
    """Its layers and steps in readable lines, what it costs, and the document itself."""
    with ctx.db.reading() as session:
        return _report(store.find(session, digest))


@router.post("/{digest}/approve", summary="Approve a program", responses=responses(422))
def approve(ctx: Ctx, user: User, digest: Digest) -> ProgramReport:
    """Runs with this program, and with no other, may then be joined. A hash that was given by
    other means can be approved before any run has come with it."""
    with ctx.db.session() as session:
        row = store.approve(session, digest, user.name, ctx.clock.now())
        log.info("program approved", program=digest, by=user.name)
        return _report(row)


@router.delete(
    "/{digest}", status_code=204, summary="Revoke an approval", responses=responses(404, 422)
)
def revoke(ctx: Ctx, user: User, digest: Digest) -> None:
    """Runs that use the program fail here at their next round."""
    with ctx.db.session() as session:
        store.revoke(session, digest)
    log.info("program revoked", program=digest, by=user.name)


def _report(row: KnownProgram) -> ProgramReport:
    program = Program.parse(row.document) if row.document else None
    described = ProgramDescription.of(program) if program else None
    return ProgramReport(
        digest=row.digest,
        owner=row.owner,
        model=row.model,
        seen=row.seen,
        approved=row.approved,
        approved_by=row.approved_by,
        operators=described.operators if described else {},
        parameters=described.parameters if described else None,
        description=described,
        program=program,
    )
