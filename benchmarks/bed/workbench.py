"""What the groups of the inference benchmark share: options, images, model, running services."""

from __future__ import annotations

import argparse
import contextlib
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.bed import link, models
from benchmarks.bed.encrypted import Answer, infer
from benchmarks.bed.link import Network
from benchmarks.bed.report import Figure, Report, choose
from benchmarks.bed.services import Bed, bed
from benchmarks.peers.environment import PeerMissing
from primia.grid.layout import DEALER, OWNER
from primia.learning.calibration import pack
from primia.learning.spec import MAX_CLASSES, ArchitectureName, ModelSpec
from primia.messages.inference import MAX_BATCH, Accuracy, ServeRequest

NODE = "hospital-a"
MEMBERS = (DEALER, OWNER, NODE)
MODEL = "resnet18"


@dataclass
class Bench:
    """The options, the report, and services that the groups share; ``groups``: all there are."""

    given: argparse.Namespace
    report: Report
    folder: Path
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self.open = contextlib.ExitStack()

    def left(self) -> float:
        budget: float = self.given.budget
        return budget - (time.monotonic() - self.started)

    @cached_property
    def pictures(self) -> models.Pictures:
        tests = max(self.given.images, 64)
        return models.pictures(self.given.data, self.folder, 600, tests)

    @cached_property
    def spec(self) -> ModelSpec:
        return self.spec_of(self.given.size)

    def spec_of(self, size: int, architecture: ArchitectureName = "resnet18") -> ModelSpec:
        classes = min(self.given.classes, MAX_CLASSES)
        names = tuple(f"class-{number:04}" for number in range(classes))
        return ModelSpec(architecture=architecture, classes=names, channels=3, image_size=size)

    @cached_property
    def module(self) -> torch.nn.Module:
        return models.untrained(self.spec, self.pictures)

    @property
    def files(self) -> list[Path]:
        return [path for path, _ in self.pictures.files]

    @cached_property
    def loopback(self) -> Bed:
        return self._bed("loopback", None)

    @cached_property
    def network(self) -> Network:
        """Raises PeerMissing with the reason where there can be none."""
        if reason := link.missing():
            raise PeerMissing(reason)
        return self.open.enter_context(Network.up(MEMBERS))

    @cached_property
    def apart(self) -> Bed:
        """The same services, on the slow network."""
        return self._bed("apart", self.network)

    @cached_property
    def stocked(self) -> Bed:
        """Services that keep the material of one image ahead."""
        return self._bed("stocked", None, PRIMIA_PREFETCH="1")

    @cached_property
    def stocked_apart(self) -> Bed:
        """The same, on the slow network."""
        return self._bed("stocked-apart", self.network, PRIMIA_PREFETCH="1")

    def _bed(self, name: str, network: Network | None, **more: str) -> Bed:
        """Services that serve the model, warmed up by an inference. ``more``: settings of the data
        node."""
        batch = {"PRIMIA_MAX_BATCH": str(MAX_BATCH)}
        threads = str(self.given.threads)
        party = {"PRIMIA_THREADS": threads, "OMP_NUM_THREADS": threads, **batch}
        settings = {"model_owner": party, "data_node": {**party, **more}, "crypto_provider": batch}
        with contextlib.ExitStack() as stack:  # what is no use is ended before it is tried again
            found = stack.enter_context(bed(self.folder / name, MEMBERS, network, settings))
            calibrated = network is None and "calibrated" in choose(self.given.only, self.groups)
            self.serve(found, MODEL, self.spec, self.module, calibrated=calibrated)
            infer(found.node(NODE), self.files[:1], MODEL, 2)
            self.open.enter_context(stack.pop_all())
        return found

    def serve(
        self,
        found: Bed,
        name: str,
        spec: ModelSpec,
        module: torch.nn.Module,
        *,
        calibrated: bool = False,
    ) -> None:
        """``calibrated``: also with windows that fit training images."""
        owner = found.owner()
        version = models.upload(owner, name, spec, module).version
        accuracies: tuple[Accuracy, ...] = ("exact",)
        if calibrated:
            chosen = self.pictures.training[: self.given.calibration]
            owner.calibrate(name, version, pack(self.pictures.pixels(spec, chosen).pixels))
            accuracies = ("exact", "calibrated")
        request = ServeRequest(results=("scores",), accuracies=accuracies, stock=0)
        owner.serve(name, version, request)
        owner.wait_served(name, version)

    def times(self, found: Bed, repeats: int | None = None, **options: str) -> list[Answer]:
        count = repeats or self.given.repeats
        files = self.files
        return [
            infer(found.node(NODE), files[turn : turn + 1], MODEL, 2, **options)
            for turn in range(count)
        ]

    def figure(
        self, group: str, name: str, unit: str, values: list[float], *options: str, **more: object
    ) -> Figure:
        shared = [f"--{key}={getattr(self.given, key)}" for key in ("size", "classes", "repeats")]
        command = self.report.command("--only", group, *shared, *options)
        return self.report.add(Figure(group, name, unit, command, values, **more))  # type: ignore[arg-type]

    def missing(self, group: str, name: str, reason: str) -> None:
        self.figure(group, name or "not measured", "", [], note=reason)
