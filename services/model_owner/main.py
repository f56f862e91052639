"""The model owner, composed of its features."""

from __future__ import annotations

from pathlib import Path

from primia.chassis.service import Service
from services.model_owner.inference import api as inference_api
from services.model_owner.inference import node_api as inference_node_api
from services.model_owner.inference import stream_api as inference_stream_api
from services.model_owner.inference import tasks as inference_tasks
from services.model_owner.inference import worker as inference_worker
from services.model_owner.registry import api as registry_api
from services.model_owner.registry import tasks as registry_tasks
from services.model_owner.rounds import api as rounds_api
from services.model_owner.rounds import node_api, nodes_api
from services.model_owner.rounds import tasks as rounds_tasks
from services.model_owner.settings import ModelOwnerSettings
from services.model_owner.studies import api as studies_api
from services.model_owner.studies import tasks as studies_tasks
from services.model_owner.tables import Base


def create_service() -> Service:
    return Service(
        kind="model_owner",
        title="PriMIA Grid – model owner",
        summary="Models, federated training runs and encrypted inference with the owner's models.",
        settings=ModelOwnerSettings,
        metadata=Base.metadata,
        migrations=Path(__file__).parent / "migrations",
        routers=(
            registry_api.router,
            nodes_api.router,
            rounds_api.router,
            node_api.router,
            studies_api.router,
            inference_api.router,
            inference_node_api.router,
            inference_stream_api.router,
        ),
        tasks={
            **registry_tasks.TASKS,
            **rounds_tasks.TASKS,
            **studies_tasks.TASKS,
            **inference_tasks.TASKS,
        },
        sweeps={
            **registry_tasks.SWEEPS,
            **rounds_tasks.SWEEPS,
            **studies_tasks.SWEEPS,
            **inference_tasks.SWEEPS,
        },
        worker_start=inference_worker.start,
        worker_stop=inference_worker.stop,
    )
