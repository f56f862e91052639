"""Starting a run: everything it names must exist, fit and be free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from primia.chassis.context import Context
from primia.chassis.identity import Principal
from primia.errors import NotFound
from primia.learning.accounting import check_norm
from primia.learning.spec import ModelSpec
from primia.messages.common import ModelCard
from primia.messages.rounds import (
    NodeCard,
    Proposal,
    RunRequest,
    SparseGraph,
    check_external,
    check_masks,
)
from primia.prg import fresh_bytes
from services.model_owner.registry import store as registry
from services.model_owner.registry.store import ModelVersion
from services.model_owner.registry.weights import weights_path
from services.model_owner.rounds import progress, store
from services.model_owner.rounds.course import Model
from services.model_owner.rounds.domain import resolve_graph, resolve_threshold
from services.model_owner.rounds.tables import Run


@dataclass(frozen=True)
class Fitted:
    """What a run is made of."""

    version: ModelVersion
    spec: ModelSpec
    nodes: Sequence[Principal]
    threshold: int
    sparse: SparseGraph | None


def fit(ctx: Context, session: Session, request: RunRequest) -> Fitted:
    """Nothing is written. Raises NotFound (model, version, node), Conflict (version not ready),
    InvalidInput (image size, class weights, threshold, what the model cannot be trained with)."""
    version = registry.ready_version(session, request.model, request.version)
    model = registry.find_model(session, request.model)
    spec = registry.spec_at(model, version, request.training.image_size)
    request.training.check_classes(len(spec.classes))
    if spec.task == "segmentation":
        check_masks(request)
    if request.privacy.dp_sgd is not None or request.privacy.central is not None:
        check_norm(spec)
    if spec.layout is not None:
        check_external(request)
    nodes = [_enrolled(ctx, name) for name in request.nodes]
    sites = request.aggregation.sites_per_round or len(nodes)
    sparse = resolve_graph(request.aggregation, sites)
    threshold = resolve_threshold(sites, request.aggregation, sparse)
    return Fitted(version, spec, nodes, threshold, sparse)


def start(ctx: Context, session: Session, request: RunRequest, user: str) -> Run:
    """The run in review. Raises what ``fit`` does, and Conflict where a node is engaged."""
    fitted = fit(ctx, session, request)
    proposal = _proposal(ctx, fresh_bytes(16).hex(), request, fitted)
    row = _row(ctx, request, proposal, fitted.version, user)
    row.compared = [_compared(ctx, session, request.model, number) for number in request.compare]
    run = store.add_run(session, row, proposal)
    progress.set_deadline(ctx, run, "review")
    store.record(session, run.id, run.created, "created", by=user, nodes=list(request.nodes))
    return run


def _compared(ctx: Context, session: Session, model: str, number: int) -> dict[str, object]:
    """A version that the sites evaluate beside the run's own model."""
    version = registry.ready_version(session, model, number)
    return Model(
        name=f"version-{number}",
        path=str(weights_path(ctx.files, version.id).relative_to(ctx.files.root)),
        digest=version.digest or "",
        bytes=version.bytes or 0,
    ).model_dump()


def _enrolled(ctx: Context, name: str) -> Principal:
    principal = ctx.principals.get(name)
    if principal is None or principal.role != "data_node":
        raise NotFound(
            f"There is no data node {name}.", hint="GET /nodes lists them; POST /nodes enrols one."
        )
    return principal


def _proposal(ctx: Context, run_id: str, request: RunRequest, fitted: Fitted) -> Proposal:
    version, spec = fitted.version, fitted.spec
    card = ModelCard(
        name=version.model,
        version=version.version,
        architecture=spec.architecture,
        classes=spec.classes,
        channels=spec.channels,
        norm=spec.norm,
        width=spec.width if spec.architecture == "unet" else None,
        image_size=spec.image_size,
        mean=spec.mean,
        deviation=spec.std,
        digest=version.digest or "",
        program=spec.program.digest if spec.program else None,
        layout=spec.layout_digest,
    )
    return Proposal(
        run=run_id,
        owner=ctx.identity.name,
        model=card,
        nodes=tuple(NodeCard(name=node.name, public_key=node.public_key) for node in fitted.nodes),
        rounds=request.rounds + request.repeats + request.statistics.wanted,
        planned=request.rounds,
        training=request.training.resolved(),
        secure=request.aggregation.secure,
        threshold=fitted.threshold,
        sparse=fitted.sparse,
        sites_per_round=request.aggregation.sites_per_round,
        others=len(request.compare) + (request.selection != "last"),
        statistics=request.statistics,
        privacy=request.privacy,
        max_norm=request.aggregation.max_norm,
        timeouts=request.timeouts,
        program=spec.program,
    )


def _row(
    ctx: Context, request: RunRequest, proposal: Proposal, version: ModelVersion, user: str
) -> Run:
    path = weights_path(ctx.files, version.id)
    return Run(
        id=proposal.run,
        state="reviewing",
        request=request.model_dump(mode="json"),
        proposal=proposal.model_dump(mode="json"),
        model=version.model,
        version=version.version,
        secure=proposal.secure,
        needed=proposal.threshold,
        rounds=request.rounds,
        repeats=request.repeats,
        weights=str(path.relative_to(ctx.files.root)),
        weights_digest=version.digest,
        weights_bytes=version.bytes,
        parameters=version.size.parameters,
        buffers=version.size.buffers,
        created=ctx.clock.now(),
        created_by=user,
    )
