"""The demonstration's encrypted inferences, and the plain predictions to hold them against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from primia.chassis.identity import Identity
from primia.cli.watch import watch_inference
from primia.client import DataNode, ModelOwner
from primia.demo.sites import Sites
from primia.errors import Unavailable
from primia.grid.layout import Grid
from primia.messages.inference import Cost, InferenceResult, ServeRequest
from primia.messages.registry import VersionReport


@dataclass(frozen=True)
class Classified:
    """``scores``/``plain``: logits (images, classes); ``truth``: class indices."""

    version: int
    batch: int
    scores: NDArray[np.float64]
    plain: NDArray[np.float64]
    truth: NDArray[np.int64]
    costs: tuple[Cost, ...]

    @property
    def agreement(self) -> float:
        return float(np.mean(self.scores.argmax(1) == self.plain.argmax(1)))

    @property
    def difference(self) -> float:
        return float(np.abs(self.scores - self.plain).max())

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.scores.argmax(1) == self.truth))

    @property
    def online_seconds(self) -> float:
        """For an image."""
        return sum(cost.online_seconds for cost in self.costs) / len(self.truth)


def classify(
    grid: Grid, operator: Identity, owner: ModelOwner, sites: Sites, model: str, version: int
) -> Classified:
    """Serve the version, then let each node have its share of the test images classified."""
    groups = [sites.tests[k :: len(grid.nodes)] for k in range(len(grid.nodes))]
    batch = max(1, min(len(group) for group in groups))
    request = ServeRequest(results=("scores",), stock=len(groups), batch=batch)
    owner.serve(model, version, request)
    owner.wait_served(model, version)
    scores, costs, truth, files = [], [], [], []
    for node, group in zip(grid.nodes, groups, strict=True):
        tests = group[:batch]
        client = DataNode(operator, node.name, node.url)
        job = client.infer([file for file, _ in tests], model, version, "scores")
        title = f"Encrypted inference at {node.name}"
        status = watch_inference(client, job.id, title=title)
        if status.state != "done":
            raise Unavailable(f"The inference at {node.name} was not done: {status.reason}")
        scores.append(_logits(client.result(job.id), sites.classes))
        costs.append(status.cost)
        truth += [sites.classes.index(label) for _, label in tests]
        files += [file for file, _ in tests]
        client.close()
    plain = _plain_logits(grid.root / "compare", owner, owner.version(model, version), files)
    return Classified(
        version=version,
        batch=batch,
        scores=np.concatenate(scores),
        plain=plain,
        truth=np.array(truth),
        costs=tuple(costs),
    )


def _logits(result: InferenceResult, classes: tuple[str, ...]) -> NDArray[np.float64]:
    rows = [[(p.scores or {})[name] for name in classes] for p in result.predictions]
    return np.array(rows, dtype=np.float64)  # (images, classes)


def _plain_logits(
    folder: Path, owner: ModelOwner, report: VersionReport, files: list[Path]
) -> NDArray[np.float64]:
    """What the trained model says in the clear, in float32 torch, in this process."""
    import torch

    from primia.learning import images
    from primia.learning.layout import read_state
    from primia.learning.models import load_model, spec_layout

    weights = folder / "served.safetensors"
    weights.unlink(missing_ok=True)
    owner.weights(report.model, report.version, weights)
    spec = next(m.spec for m in owner.models().models if m.name == report.model)
    module = load_model(spec, read_state(weights.read_bytes(), spec_layout(spec))).eval()
    pixels = [images.load(file, spec.image_size, spec.channels) for file in files]
    batch = np.stack([images.normalise(each, spec.mean, spec.std) for each in pixels])
    with torch.no_grad():
        found: NDArray[np.float64] = module(torch.from_numpy(batch)).double().numpy()
    return found
