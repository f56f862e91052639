"""Where the time of one inference goes, step by step: the data node's own code, in this process.

python -m benchmarks.bed.breakdown MODEL IMAGE    (with the environment of a data node's worker)
Talks to the real services as the node's worker does, and prints a line of JSON: for each request
the layers up to the nonlinear step that it is for, seconds that the node computed before it, and
seconds until the answer was there (the line, and the model owner's computing: of the linear layers
and the gate together). The first inference warms up.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from primia.chassis.context import Context, build
from primia.learning import images
from primia.messages.inference import ServedModel
from primia.mpc.operations import Flatten, MaxPool, Narrow, Relu
from primia.mpc.plan import Plan
from primia.prg import fresh_bytes
from services.data_node.inference import run, served, store
from services.data_node.settings import DataNodeSettings


def main(model: str, image: Path) -> None:
    settings = DataNodeSettings.from_environment()
    ctx = build("data_node", settings)
    found = next(m for m in served.served_models(ctx).models if m.card.name == model)
    chosen = ServedModel(card=found.card, plans=found.plans[:1])
    card = found.card
    pixels = images.load(image, card.image_size, card.channels)[np.newaxis]  # (1, C, H, W)
    row = store.Inference(
        id=fresh_bytes(16).hex(),
        model=card.name,
        version=card.version,
        result="scores",
        images=[image.name],
        served={"model": chosen.model_dump_json(), "protocol": "fss"},
    )
    steps: list[dict[str, Any]] = []
    for _ in range(2):
        steps = _one(ctx, row, pixels)
    plan: Plan = served.prepared(ctx, chosen, chosen.plans[0]).plan
    for step, name in zip(steps, step_names(plan), strict=True):
        step["layer"] = name
    print("RESULT " + json.dumps(steps), flush=True)


def step_names(plan: Plan) -> list[str]:
    """A request each: all layers that are computed for its answer, in order. Shifts and reshaping
    are nobody's work."""
    shapes, widths = plan.shapes(), plan.widths()
    names: list[str] = []
    since: list[str] = []
    for op in plan.ops:
        if isinstance(op, Relu | MaxPool):
            count = len(op.gates(shapes[op.source], widths[op.source]))
            levels = [f"{op.layer} {level + 1} of {count}" for level in range(count)]
            first, *others = levels if count > 1 else [op.layer]
            names += [" + ".join([*since, first]), *others]
            since = []
        elif not isinstance(op, Narrow | Flatten):
            since.append(op.layer)
    tournament = [gate.layer for gate in plan.gates()[len(names) :]]
    first, *others = [*tournament, "result"]
    return [*names, " + ".join([*since, first]), *others]


def _one(ctx: Context, row: store.Inference, pixels: Any) -> list[dict[str, Any]]:
    owner, steps, since = served.owner(ctx), [], [0.0]
    plain = owner.request

    def timed(method: str, path: str, **more: Any) -> Any:
        if "/steps/" not in path:
            return plain(method, path, **more)
        began = time.perf_counter()
        answer = plain(method, path, **more)
        ended = time.perf_counter()
        sent = len(more["content"]) + len(answer.content)
        steps.append({"node": began - since[0], "answer": ended - began, "bytes": sent})
        since[0] = ended
        return answer

    def progress(phase: str, step: int, _steps: int, _cost: Any) -> None:
        if phase == "online" and step == 0:
            since[0] = time.perf_counter()

    report = run.Report(
        opened=lambda _deal, _session: None,
        progress=progress,
        go_on=lambda: None,
        waits=lambda _reason: None,
    )
    owner.request = timed  # type: ignore[method-assign]
    try:
        run.attempt(ctx, row, pixels, report)
    finally:
        owner.request = plain  # type: ignore[method-assign]
    return steps


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
