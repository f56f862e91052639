"""Rows as the reports that users read."""

from __future__ import annotations

from primia.chassis.identity import Principal
from primia.messages.registry import ModelReport, NodeReport, Normalisation, VersionReport
from primia.messages.rounds import Scores
from services.model_owner.registry import store
from services.model_owner.registry.store import Model, ModelVersion


def version_report(row: ModelVersion) -> VersionReport:
    return VersionReport(
        model=row.model,
        version=row.version,
        state=store.state_of(row),
        reason=row.reason,
        source=store.source_of(row),
        parent=row.parent,
        run=row.run,
        image_size=row.image_size,
        normalisation=(
            Normalisation.model_validate(row.normalisation) if row.normalisation else None
        ),
        digest=row.digest,
        bytes=row.bytes,
        values=row.size.values if row.state == "ready" else None,
        metrics=Scores.model_validate(row.metrics) if row.metrics else None,
        created=row.created,
        created_by=row.created_by,
    )


def model_report(row: Model, newest: ModelVersion) -> ModelReport:
    return ModelReport(
        name=row.name,
        description=row.description,
        spec=store.spec_of(row),
        created=row.created,
        created_by=row.created_by,
        newest=version_report(newest),
    )


def node_report(node: Principal, visits: store.Visits, runs: dict[str, str]) -> NodeReport:
    return NodeReport(
        name=node.name,
        public_key=node.public_key,
        last_seen=visits.get(node.name),
        run=runs.get(node.name),
    )
