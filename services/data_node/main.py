"""The data node, composed of its features."""

from __future__ import annotations

from pathlib import Path

from primia.chassis.service import Service
from services.data_node.datasets import api as datasets_api
from services.data_node.datasets import tasks as datasets_tasks
from services.data_node.inference import api as inference_api
from services.data_node.inference import tasks as inference_tasks
from services.data_node.privacy import api as privacy_api
from services.data_node.programs import api as programs_api
from services.data_node.settings import DataNodeSettings
from services.data_node.tables import Base
from services.data_node.training import agent
from services.data_node.training import api as training_api
from services.data_node.training import tasks as training_tasks


def create_service() -> Service:
    return Service(
        kind="data_node",
        title="PriMIA Grid – data node",
        summary="A hospital's data sets, its part in training runs, its encrypted inferences.",
        settings=DataNodeSettings,
        metadata=Base.metadata,
        migrations=Path(__file__).parent / "migrations",
        routers=(
            datasets_api.router,
            training_api.router,
            programs_api.router,
            privacy_api.router,
            inference_api.router,
        ),
        tasks={**datasets_tasks.TASKS, **training_tasks.TASKS, **inference_tasks.TASKS},
        sweeps={**datasets_tasks.SWEEPS, **training_tasks.SWEEPS, **inference_tasks.SWEEPS},
        background=(agent.run,),
    )
