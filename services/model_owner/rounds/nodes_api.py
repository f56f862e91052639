"""Routes: the data nodes that the model owner knows, and what they are doing."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Response

from primia.chassis.auth import require
from primia.chassis.context import Context, Ctx
from primia.chassis.identity import Principal
from primia.chassis.problems import responses
from primia.errors import Conflict, NotFound
from primia.messages.common import Name
from primia.messages.registry import NewNode, NodeList, NodeReport
from services.model_owner.registry import store as registry
from services.model_owner.registry.views import node_report
from services.model_owner.rounds import store

router = APIRouter(prefix="/nodes", tags=["nodes"], dependencies=[Depends(require("user"))])


@router.get("", summary="List the enrolled data nodes", responses=responses())
def listing(ctx: Ctx) -> NodeList:
    return NodeList(nodes=_reports(ctx, ctx.principals.by_role("data_node")))


def _reports(ctx: Context, nodes: list[Principal]) -> tuple[NodeReport, ...]:
    with ctx.db.reading() as session:
        visits, runs = registry.visits(session), store.engagements(session)
    return tuple(node_report(node, visits, runs) for node in nodes)


@router.get("/{name}", summary="A data node", responses=responses(404, 422))
def show(ctx: Ctx, name: Name) -> NodeReport:
    return _reports(ctx, [_find(ctx, name)])[0]


def _find(ctx: Context, name: str) -> Principal:
    principal = ctx.principals.get(name)
    if principal is None or principal.role != "data_node":
        raise NotFound(f"There is no data node {name}.", hint="GET /nodes lists them.")
    return principal


@router.post("", status_code=201, summary="Enrol a data node", responses=responses(400, 409, 422))
def enrol(ctx: Ctx, node: NewNode, response: Response) -> NodeReport:
    """Under the key that its operator has handed over; the same again changes nothing."""
    known = ctx.principals.get(node.name)
    if known is not None and known.role != "data_node":
        raise Conflict(f"{node.name} is enrolled as a {known.role}.", hint="Choose another name.")
    ctx.principals.add(Principal(name=node.name, role="data_node", public_key=node.public_key))
    response.headers["Location"] = f"/nodes/{node.name}"
    return show(ctx, node.name)


@router.delete(
    "/{name}", status_code=204, summary="Remove a data node", responses=responses(404, 409, 422)
)
def remove(ctx: Ctx, name: Name) -> None:
    """Its tokens are refused from now on. Not while it takes part in a run."""
    _find(ctx, name)
    with ctx.db.session() as session:
        run = store.engagements(session).get(name)
        if run is not None:
            raise Conflict(
                f"{name} takes part in run {run}.", hint="Cancel that run first.", run=run
            )
        registry.forget_visits(session, name)
    ctx.principals.remove(name)
