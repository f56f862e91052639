"""The demonstration's training runs: the same round plain and secure, then the whole run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from primia.chassis.identity import Identity
from primia.cli.watch import watch_run
from primia.client import DataNode, ModelOwner
from primia.demo.sites import Sites
from primia.errors import InvalidInput, Unavailable
from primia.grid.layout import Grid
from primia.messages.registry import NewModel
from primia.messages.rounds import AggregationSettings, RunRequest, TrainingSettings
from primia.messages.runs import RunReport


@dataclass(frozen=True)
class Trained:
    """``plain``: one round from the same start; ``difference``: the largest between the two models
    after that round (parameters and buffers); ``largest``: the largest value among them."""

    model: str
    run: RunReport
    plain: RunReport
    first: RunReport
    difference: float
    largest: float
    seconds: float


def register_images(grid: Grid, operator: Identity, sites: Sites, dataset: str) -> None:
    """Each node gets its folder as a data set, and checks it file by file."""
    clients = [DataNode(operator, node.name, node.url) for node in grid.nodes]
    for client, folder in zip(clients, sites.folders, strict=True):
        for known in client.datasets()["datasets"]:
            if known["name"] != dataset:
                client.remove_dataset(known["name"])
        if dataset not in {known["name"] for known in client.datasets()["datasets"]}:
            client.add_dataset({"name": dataset, "path": str(folder)})
    for client in clients:
        found = client.wait_dataset(dataset)
        if found["state"] != "ready":
            problems = client.dataset_problems(dataset)["problems"]
            first = f" {problems[0]['file']} {problems[0]['reason']}" if problems else ""
            raise InvalidInput(f"{client.name} rejected its images: {found['reason']}.{first}")
        client.close()


def train(
    grid: Grid, owner: ModelOwner, sites: Sites, settings: TrainingSettings, rounds: int
) -> Trained:
    """One plain round, one secure round from the same start, then the secure run goes on. Batches
    are made to fit the smallest site: one that is larger than a site would be refused there."""
    fitting = max(2, min(settings.batch_size, min(sites.counts) // 2))
    settings = settings.model_copy(update={"batch_size": fitting})
    model = _new_model(owner, sites, settings)
    nodes = tuple(node.name for node in grid.nodes)

    def run(version: int, count: int, secure: bool, title: str) -> RunReport:
        request = RunRequest(
            model=model,
            version=version,
            nodes=nodes,
            rounds=count,
            training=settings,
            aggregation=AggregationSettings(secure=secure),
        )
        report = watch_run(owner, owner.start_run(request).id, title=title)
        if report.state != "finished":
            raise Unavailable(f"{title} ended as {report.state}: {report.reason}")
        return report

    plain = run(1, 1, False, "One round, plain aggregation")
    first = run(1, 1, True, "The same round, secure aggregation")
    started = time.monotonic()
    whole = run(1, rounds, True, "The whole run, secure aggregation")
    seconds = time.monotonic() - started
    difference, largest = _compare(grid.root / "compare", owner, model, plain, first)
    return Trained(model, whole, plain, first, difference, largest, seconds)


def _new_model(owner: ModelOwner, sites: Sites, settings: TrainingSettings) -> str:
    taken = {each.name for each in owner.models().models}
    name = next(n for k in range(1, 10_000) if (n := f"radiographs-{k}") not in taken)
    owner.create_model(
        NewModel(
            name=name,
            architecture="resnet18",
            classes=sites.classes,
            image_size=settings.image_size,
            seed=settings.seed,
        )
    )
    owner.wait_version(name, 1)
    return name


def _compare(
    folder: Path, owner: ModelOwner, model: str, plain: RunReport, secure: RunReport
) -> tuple[float, float]:
    folder.mkdir(mode=0o700, exist_ok=True)
    states = []
    for label, report in (("plain", plain), ("secure", secure)):
        file = folder / f"{label}.safetensors"
        file.unlink(missing_ok=True)
        owner.weights(model, report.final_version or 0, file)
        states.append(load_file(file))
    left, right = states
    difference = max(float(np.abs(left[name] - right[name]).max()) for name in left)
    return difference, max(float(np.abs(tensor).max()) for tensor in left.values())
