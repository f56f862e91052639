"""Encrypted inference against images in a session, and against pixels a side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.bed import models
from benchmarks.bed.encrypted import infer
from benchmarks.bed.workbench import NODE, Bench
from primia.learning.spec import ArchitectureName
from primia.messages.inference import MAX_BATCH

# ResNet-18 takes no smaller images; LeNet-5 from those it is known for.
_SIDES: Mapping[ArchitectureName, tuple[int, ...]] = {
    "lenet": (28, 64, 128, 256),
    "resnet18": (32, 64, 128, 224, 384, 512),
}


def batches(bench: Bench) -> None:
    """At 64 pixels a side: 64 images of 224 would need 36 GB of material."""
    spec, found = bench.spec_of(64), bench.loopback
    bench.serve(found, "batches", spec, models.untrained(spec, bench.pictures))
    infer(found.node(NODE), bench.files[:1], "batches", 2)
    series = []
    for batch in (1, 2, 4, 8, 16, 32, 64):
        if batch > MAX_BATCH or bench.left() < 30:
            reason = "the budget is used up" if batch <= MAX_BATCH else f"at most {MAX_BATCH} a job"
            bench.missing("batch", f"{batch} images", reason)
            continue
        files = (bench.files * 64)[:batch]
        answers = [
            infer(found.node(NODE), files, "batches", 2)
            for _ in range(min(3 if batch < 16 else 1, bench.given.repeats))
        ]
        online = [answer.cost.online_seconds / batch for answer in answers]
        bench.figure("batch", f"online an image, {batch} images of 64", "s", online)
        everything = [answer.job_seconds / batch for answer in answers]
        bench.figure("batch", f"everything an image, {batch} images of 64", "s", everything)
        series.append([batch, float(np.median(online)), float(np.median(everything))])
        bench.report.keep("batch", series)


def sides(bench: Bench) -> None:
    for architecture, chosen in _SIDES.items():
        _sides_of(bench, architecture, chosen)


def _sides_of(bench: Bench, architecture: ArchitectureName, chosen: Sequence[int]) -> None:
    series = []
    for side in chosen:
        name = f"{architecture}, {side} pixels a side"
        if bench.left() < 30 + (side / 224) ** 2 * 40:
            bench.missing("sides", name, "the budget is used up")
            continue
        spec, found = bench.spec_of(side, architecture), bench.loopback
        model = f"{architecture}-{side}".replace("_", "-")
        bench.serve(found, model, spec, models.untrained(spec, bench.pictures))
        answers = [
            infer(found.node(NODE), bench.files[:1], model, 2)
            for _ in range(min(3 if side < 384 else 1, bench.given.repeats) + 1)
        ][1:]
        online = [answer.cost.online_seconds for answer in answers]
        bench.figure("sides", f"online, {name}", "s", online)
        jobs = [answer.job_seconds for answer in answers]
        bench.figure("sides", f"everything, {name}", "s", jobs)
        material = answers[0].cost.material_bytes
        series.append([side, float(np.median(online)), float(np.median(jobs)), material])
        bench.report.keep(f"sides_{architecture}", series)
