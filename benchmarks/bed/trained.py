"""Results of trainings, kept on disk under a digest of all that they depend on but the code."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from primia.evaluation.figures import Figures
from primia.learning.training import ImageData
from primia.simulation import comparing
from primia.simulation.comparing import Outcome, Trial
from primia.simulation.sites import Setting


def outcome(
    folder: Path, setting: Setting, trial: Trial, progress: Callable[[str, int, int], None]
) -> Outcome:
    """Of this training; trained only where ``folder`` does not have it yet."""
    path = folder / f"{slug(trial.name)}-{_digest(setting, trial)}.json"
    if not path.exists():
        found = comparing.outcome(setting, trial, progress)
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(_document(found)))
        partial.replace(path)
    return _parsed(json.loads(path.read_text()))


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("ε", "epsilon")).strip("-")


def _digest(setting: Setting, trial: Trial) -> str:
    digest = hashlib.sha256(trial.name.encode())
    digest.update(trial.spec.model_dump_json().encode())
    plan = trial.plan
    parts = [plan.training.model_dump(mode="json"), plan.server.model_dump(mode="json")]
    private = plan.dp.model_dump(mode="json") if plan.dp else None
    digest.update(json.dumps([plan.rounds, *parts, private], sort_keys=True).encode())
    for site in trial.sites:
        for part in (site.training, site.validation):
            if part is not None:
                _add(digest, part)
    _add(digest, setting.test)
    return digest.hexdigest()[:12]


def _add(digest: hashlib._Hash, images: ImageData) -> None:
    digest.update(np.ascontiguousarray(images.pixels))
    digest.update(np.ascontiguousarray(images.labels))


def _document(found: Outcome) -> dict[str, object]:
    return {
        "name": found.name,
        "images": found.images,
        "seconds": found.seconds,
        "figures": found.figures.model_dump(mode="json"),
        "predicted": found.predicted.tolist(),
    }


def _parsed(document: dict[str, object]) -> Outcome:
    return Outcome(
        str(document["name"]),
        int(str(document["images"])),
        float(str(document["seconds"])),
        Figures.model_validate_json(json.dumps(document["figures"])),
        np.array(document["predicted"], dtype=np.int64),
    )
