"""Training runs through the services with next to no training: what a round costs beside it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from benchmarks.bed.services import Bed
from benchmarks.bed.step import CLASSES, IMAGES, SIDE, TRAINING
from primia.messages.registry import NewModel
from primia.messages.rounds import AggregationSettings, RunRequest, Timeouts, TrainingSettings
from primia.messages.runs import ENDED, RunReport

DATASET = "images"
_POLL_SECONDS = 0.5  # a look costs the owner time, and every time is by its own clock


def prepare(found: Bed, nodes: tuple[str, ...]) -> None:
    """Each node registers four pictures of two classes: a batch is two of them."""
    for number, name in enumerate(nodes):
        folder = found.home(name) / "images" / "set"
        for at in range(IMAGES):
            label = at % len(CLASSES)
            target = folder / CLASSES[label] / f"person{10 * number + at}_{CLASSES[label]}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shade = 60 + 120 * label + 7 * at + number
            pixels = np.full((SIDE, SIDE), shade, dtype=np.uint8)
            pixels[at : at + 8] += 20
            Image.fromarray(pixels).save(target)
        node = found.node(name)
        node.add_dataset({"name": DATASET, "path": str(folder)})
        state = node.wait_dataset(DATASET)
        if state["state"] != "ready":
            raise RuntimeError(f"{name} rejects its images: {node.dataset_problems(DATASET)}")


def create(found: Bed, name: str, architecture: str) -> int:
    """A model; its number of values (parameters and buffers)."""
    owner = found.owner()
    spec = {"architecture": architecture, "classes": CLASSES, "image_size": SIDE}
    owner.create_model(NewModel.model_validate({"name": name, **spec}))
    return owner.wait_version(name, 1).values or 0


@dataclass(frozen=True)
class Trial:
    run: str
    report: RunReport

    @property
    def seconds(self) -> list[float]:
        """Of each round but the first, in which workers load what they need."""
        return [
            (each.ended - each.started).total_seconds()
            for each in self.report.reports[1:]
            if each.ended
        ]

    @property
    def training(self) -> float:
        """Mean seconds of the little training that there is, at one site."""
        spent = [site.seconds or 0 for each in self.report.reports[1:] for site in each.sites]
        return float(np.mean(spent))

    def bytes(self, direction: str) -> float:
        """Mean a node and round; ``direction``: up or down."""
        sites = [site for each in self.report.reports for site in each.sites]
        return float(np.mean([getattr(site, f"bytes_{direction}") for site in sites]))


def start(
    found: Bed,
    model: str,
    nodes: tuple[str, ...],
    rounds: int,
    *,
    secure: bool,
    timeouts: Timeouts | None = None,
) -> str:
    """One batch of two images a round, by plain gradient descent."""
    training = TrainingSettings(image_size=SIDE, validation_fraction=0.0, **TRAINING)
    request = RunRequest(
        model=model,
        version=1,
        nodes=nodes,
        rounds=rounds,
        training=training,
        aggregation=AggregationSettings(secure=secure),
        timeouts=timeouts or Timeouts(),
    )
    return found.owner().start_run(request).id


def wait(found: Bed, run: str, seconds: float = 600) -> Trial:
    owner, deadline = found.owner(), time.monotonic() + seconds
    while True:
        report = owner.run(run)
        if report.state in ENDED:
            break
        if time.monotonic() > deadline:
            raise RuntimeError(f"The run was not done within {seconds:.0f} s.")
        time.sleep(_POLL_SECONDS)
    if report.state != "finished":
        raise RuntimeError(f"The run is {report.state}: {report.reason}")
    return Trial(run, report)


def wait_stage(found: Bed, run: str, node: str, stages: tuple[str, ...]) -> None:
    owner = found.owner()
    while True:
        report = owner.run(run)
        rounds = report.reports
        if rounds and any(s.node == node and s.stage in stages for s in rounds[0].sites):
            return
        if report.state in ENDED:
            raise RuntimeError(f"The run is {report.state} before {node} has come to {stages}.")
        time.sleep(0.05)


def weights(found: Bed, trial: Trial, folder: Path) -> dict[str, NDArray[np.float32]]:
    report = trial.report
    if report.final_version is None:
        raise RuntimeError(f"The run made no model: {report.reason}")
    target = folder / f"{trial.run}.safetensors"
    found.owner().weights(report.model, report.final_version, target)
    return load_file(target)
