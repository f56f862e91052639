"""Compiled models: their files, and the few that a worker keeps prepared in memory."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from pathlib import Path

from primia.chassis.files import Files
from primia.chassis.telemetry import get_logger
from primia.errors import MalformedMessage
from primia.messages.inference import MAX_BATCH
from primia.mpc import costs
from primia.mpc.compiled import CompiledModel
from primia.mpc.owner import PreparedModel
from primia.mpc.plan import Plan
from primia.ring import MakeMap

log = get_logger(__name__)
_FOLDER = "compiled"


def weights_path(files: Files, plan_id: str) -> Path:
    """The compiled weights: the owner's secret."""
    return files.path(_FOLDER, f"{plan_id}.safetensors")


def opening_path(files: Files, plan_id: str) -> Path:
    """E = W - A, which every data node may have."""
    return files.path(_FOLDER, f"{plan_id}.opening")


def remove(files: Files, plan_id: str) -> None:
    for path in (weights_path(files, plan_id), opening_path(files, plan_id)):
        path.unlink(missing_ok=True)


@functools.lru_cache(maxsize=256)
def largest_batch(document: str, limit: int) -> int | None:
    """Images that a session of this plan takes within ``limit`` bytes of memory; None for a plan
    that another release has compiled."""
    try:
        plan = Plan.parse(document.encode())
    except MalformedMessage as error:
        log.warning("a served plan is of another release; serve it anew", reason=error.detail)
        return None
    return costs.largest_batch(plan, limit, MAX_BATCH)


class PreparedModels:
    """The latest used compiled models, ready for sessions; loads what is not there."""

    def __init__(self, files: Files, linear_map: MakeMap, capacity: int = 4) -> None:
        self._files = files
        self._linear_map = linear_map
        self._capacity = capacity
        self._lock = threading.Lock()
        self._models: OrderedDict[str, PreparedModel] = OrderedDict()

    def get(self, plan_id: str) -> PreparedModel:
        with self._lock:
            if plan_id not in self._models:
                data = weights_path(self._files, plan_id).read_bytes()
                compiled = CompiledModel.from_bytes(data)
                self._models[plan_id] = PreparedModel(
                    compiled.plan, compiled.weights, self._linear_map
                )
            self._models.move_to_end(plan_id)
            while len(self._models) > self._capacity:
                self._models.popitem(last=False)
            return self._models[plan_id]
