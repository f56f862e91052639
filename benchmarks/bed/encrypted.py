"""One encrypted inference after another through the services, with what each says that it cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

from primia.client import DataNode
from primia.messages.inference import Cost, InferenceStatus

# A poll costs the node processor time, which the inference would lack; times are the node's own.
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Answer:
    """``job_seconds``: from the request's row to the result's, all that lies between included;
    ``scores``: logits (images, classes)."""

    cost: Cost
    job_seconds: float
    requests: int
    scores: NDArray[np.float64]


def infer(
    node: DataNode,
    files: Sequence[Path],
    model: str,
    version: int,
    seconds: float = 900,
    **options: str,
) -> Answer:
    """``options``: further fields of the request (protocol, accuracy)."""
    fields = {"model": model, "version": str(version), "result": "scores", "protocol": "fss"}
    fields |= options
    pictures = [("images", (path.name, path.read_bytes())) for path in files]
    made = httpx.Request("POST", "http://node/", data=fields, files=pictures)
    headers = {"Content-Type": made.headers["Content-Type"]}
    answer = node.http.request("POST", "/inference", content=made.read(), headers=headers)
    status = _ended(node, node.http.parse(answer, InferenceStatus).id, seconds)
    if status.state != "done" or status.finished is None:
        raise RuntimeError(f"The inference is {status.state}: {status.reason}")
    rows = [list((p.scores or {}).values()) for p in node.result(status.id).predictions]
    return Answer(
        status.cost,
        (status.finished - status.created).total_seconds(),
        status.steps,
        np.array(rows, dtype=np.float64),
    )


def wait_kept(node: DataNode, model: str, seconds: float = 300) -> None:
    """Until the material of an image lies at both parties (PRIMIA_PREFETCH)."""
    deadline = time.monotonic() + seconds
    while not any(each.model == model and each.ready for each in node.kept().kept):
        if time.monotonic() > deadline:
            raise RuntimeError(f"No material was kept within {seconds:.0f} s.")
        time.sleep(_POLL_SECONDS)


def _ended(node: DataNode, job: str, seconds: float) -> InferenceStatus:
    deadline = time.monotonic() + seconds
    while True:
        status = node.inference(job)
        if status.state in ("done", "failed", "cancelled"):
            return status
        if time.monotonic() > deadline:
            raise RuntimeError(f"The inference was not done within {seconds:.0f} s.")
        time.sleep(_POLL_SECONDS)
