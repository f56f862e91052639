"""A real grid for the tests: processes, HTTP, brokers, databases; small images, a small model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from primia.client import DataNode, ModelOwner
from primia.grid import layout, processes
from primia.grid.layout import Grid
from primia.messages.registry import NewModel
from primia.messages.rounds import (
    AggregationSettings,
    RunRequest,
    Timeouts,
    TrainingSettings,
)
from primia.messages.runs import ENDED, RunReport
from tests.support.servers import wait_until

CLASSES = ("bright", "dark", "striped")
SIDE = 32
DATASET = "images"


def draw_images(folder: Path, seed: int, each: int = 12) -> None:
    """Three kinds of noisy pictures that a small network tells apart."""
    rng = np.random.default_rng(seed)
    for label, level in zip(CLASSES, (170, 80, 125), strict=True):
        (folder / label).mkdir(parents=True)
        for number in range(each):
            picture = rng.normal(level, 25, (SIDE, SIDE))
            if label == "striped":
                picture[:: int(rng.integers(3, 6))] += 90
            file = folder / label / f"person{seed}{number:03}_{label}.png"
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file)


@dataclass
class World:
    """A running grid and clients of its operator."""

    grid: Grid
    owner: ModelOwner
    nodes: dict[str, DataNode]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.nodes)

    def kill(self, member: str, *parts: str) -> None:
        for part in parts:
            processes.stop(self.grid, self.grid.member(member), part, force=True)

    def start(self, member: str, *parts: str) -> None:
        for part in parts:
            processes.start(self.grid, self.grid.member(member), part)

    def model(self, name: str, architecture: str = "small_cnn") -> str:
        spec = {"architecture": architecture, "classes": CLASSES, "image_size": SIDE}
        self.owner.create_model(NewModel.model_validate({"name": name, **spec}))
        self.owner.wait_version(name, 1)
        return name

    def start_run(
        self,
        model: str,
        rounds: int = 1,
        secure: bool = True,
        batches: int = 4,
        timeouts: Timeouts | None = None,
    ) -> str:
        request = RunRequest(
            model=model,
            version=1,
            nodes=self.names,
            rounds=rounds,
            training=TrainingSettings(image_size=SIDE, batches=batches, batch_size=8, seed=3),
            aggregation=AggregationSettings(secure=secure),
            timeouts=timeouts or Timeouts(),
        )
        return self.owner.start_run(request).id

    def wait_run(self, run: str, seconds: float = 120) -> RunReport:
        wait_until(lambda: self.owner.run(run).state in ENDED, seconds, f"the end of run {run}")
        return self.owner.run(run)

    def wait_stage(self, run: str, number: int, node: str, *stages: str) -> None:
        """Until a site has reached one of these stages of a round."""

        def reached() -> bool:
            reports = self.owner.run(run).reports
            sites = reports[number - 1].sites if len(reports) >= number else ()
            return any(site.node == node and site.stage in stages for site in sites)

        wait_until(reached, 60, f"stage {stages} of {node} in round {number}")

    def logs(self, member: str) -> str:
        files = self.grid.home(self.grid.member(member)).glob("*.log")
        return "\n".join(file.read_text(errors="replace") for file in files)


@contextlib.contextmanager
def world(root: Path, databases: Mapping[str, str] | None = None) -> Iterator[World]:
    """A grid whose three hospitals have registered their images."""
    grid = layout.create(root, databases)
    for seed, node in enumerate(grid.nodes):
        draw_images(grid.home(node) / "images" / "set", seed)
    try:
        processes.up(grid)
        identity = grid.operator()
        member = grid.member(layout.OWNER)
        owner = ModelOwner(identity, member.name, member.url)
        nodes = {node.name: DataNode(identity, node.name, node.url) for node in grid.nodes}
        for name, client in nodes.items():
            folder = grid.home(grid.member(name)) / "images" / "set"
            client.add_dataset({"name": DATASET, "path": str(folder)})
        for client in nodes.values():
            assert client.wait_dataset(DATASET)["state"] == "ready"
        yield World(grid, owner, nodes)
    finally:
        processes.down(grid)
