"""Work for a running grid: a secure training run over its nodes, then an encrypted inference.

Small on purpose: it shows that the images have in them what training and inference need, not how
well either does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from primia.client import DataNode, ModelOwner
from primia.learning import synthetic
from primia.messages.inference import ServeRequest
from primia.messages.registry import NewModel
from primia.messages.rounds import RunRequest, TrainingSettings

MODEL = "radiographs"
DATASET = "drawn"
IMAGES_A_CLASS = 16
PATIENTS_A_CLASS = 8
IMAGE_SIZE = 32
RUN_SECONDS = 900.0


@dataclass(frozen=True)
class Work:
    """What was done, in words."""

    training: str
    inference: str


def draw_images(folders: Sequence[Path]) -> None:
    """Radiograph-like images, others at each site."""
    for seed, folder in enumerate(folders):
        synthetic.draw_dataset(folder / DATASET, IMAGES_A_CLASS, PATIENTS_A_CLASS, seed)


def do(owner: ModelOwner, nodes: Sequence[DataNode], image: Path) -> Work:
    """``image``: classified by the first node. Raises RuntimeError for work that was not done."""
    for node in nodes:
        node.add_dataset({"name": DATASET, "path": f"/data/{DATASET}"})
    for node in nodes:
        found = node.wait_dataset(DATASET)
        if found["state"] != "ready":
            raise RuntimeError(f"{node.name} rejected its images: {found['reason']}")
    version = _train(owner, nodes)
    return Work(version[1], _infer(owner, nodes[0], version[0], image))


def _train(owner: ModelOwner, nodes: Sequence[DataNode]) -> tuple[int, str]:
    owner.create_model(
        NewModel(
            name=MODEL,
            architecture="resnet18",
            classes=synthetic.CLASSES,
            image_size=IMAGE_SIZE,
            seed=1,
        )
    )
    owner.wait_version(MODEL, 1)
    request = RunRequest(
        model=MODEL,
        version=1,
        nodes=tuple(node.name for node in nodes),
        rounds=1,
        training=TrainingSettings(image_size=IMAGE_SIZE, epochs=1, batch_size=8),
    )
    started = time.monotonic()
    run = owner.start_run(request).id
    while (report := owner.run(run)).state not in ("finished", "failed", "cancelled"):
        if time.monotonic() - started > RUN_SECONDS:
            raise RuntimeError(f"the run is {report.state} after {RUN_SECONDS:.0f} s")
        time.sleep(1)
    if report.state != "finished" or report.final_version is None:
        raise RuntimeError(f"the run ended as {report.state}: {report.reason}")
    seconds = time.monotonic() - started
    told = f"{len(nodes)} sites trained a model in a secure run ({seconds:.0f} s)"
    return report.final_version, told


def _infer(owner: ModelOwner, node: DataNode, version: int, image: Path) -> str:
    owner.serve(MODEL, version, ServeRequest(results=("label",)))
    owner.wait_served(MODEL, version)
    started = time.monotonic()
    job = node.infer([image], MODEL, version, "label")
    status = node.wait_inference(job.id)
    if status.state != "done":
        raise RuntimeError(f"the inference ended as {status.state}: {status.reason}")
    label = node.result(job.id).predictions[0].label
    if label not in synthetic.CLASSES:
        raise RuntimeError(f"the inference answered {label!r}, which is no class")
    seconds = time.monotonic() - started
    return f"an image was classified encrypted at {node.name} ({seconds:.0f} s)"
