"""FedSGD over the services: the opened mean is the gradient over the images of all sites."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from primia.learning import images
from primia.learning.layout import read_state
from primia.learning.manifest import DatasetManifest, split
from primia.learning.models import flatten, load_model, spec_layout
from primia.learning.spec import ModelSpec
from services.data_node.datasets import store as datasets
from tests.services.data_node.training.test_training_privacy import with_group_norm
from tests.services.data_node.training.test_training_with_owner import (  # noqa: F401  # fixtures
    CLASSES,
    owner,
    play,
    sites,
)
from tests.services.model_owner.federation import SPEC

GROUPED = ModelSpec.parse({**SPEC.model_dump(), "norm": "group"})
RATE = 0.05
TRAINING = {
    "image_size": 16,
    "algorithm": "fedsgd",
    "optimiser": "sgd",
    "learning_rate": RATE,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "batch_size": 4,
    "augment": False,
}


def weights(model_owner, model: str, version: int) -> np.ndarray:
    answer = model_owner.user("GET", f"/models/{model}/versions/{version}/weights")
    assert answer.status_code == 200, answer.text
    return read_state(answer.content, spec_layout(GROUPED))


def pooled(sites, start: np.ndarray, by_class: tuple[float, float]) -> np.ndarray:  # noqa: F811
    """One step along the gradient of the mean over all sites' training images of the loss, times
    its class's weight."""
    pixels, labels = [], []
    for node in sites:
        with node.db.reading() as session:
            (row,) = datasets.listing(session, "ready")
            manifest = DatasetManifest.of(datasets.manifest(session, row).entries, CLASSES)
        part, _ = split(manifest, 0.2, 0)
        pixels += [images.load(Path(row.place) / entry.path, 16, 1) for entry in part.entries]
        labels += list(part.labels())
    module = load_model(GROUPED, start).train()
    seen = (torch.from_numpy(np.stack(pixels)).float() / 255 - GROUPED.mean) / GROUPED.std
    truth = torch.tensor(labels)
    losses = torch.nn.functional.cross_entropy(module(seen), truth, reduction="none")
    (losses * torch.tensor(by_class)[truth]).mean().backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= RATE * parameter.grad
    return flatten(module)


@pytest.mark.parametrize(
    ("secure", "by_class"), [(True, None), (False, None), (True, (0.5, 3.0)), (False, (0.5, 3.0))]
)
def test_two_rounds_are_two_steps_along_the_gradient_over_all_images(
    owner,  # noqa: F811
    sites,  # noqa: F811
    secure: bool,
    by_class: tuple[float, float] | None,
):
    model_owner, _ = owner
    model = with_group_norm(model_owner)
    before = weights(model_owner, model, 1)
    run = model_owner.start(
        model=model,
        rounds=2,
        training={**TRAINING, "class_weights": by_class},
        aggregation={"secure": secure},
    )
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert (shown["state"], shown["reason"]) == ("finished", "")
    known = by_class or (1.0, 1.0)
    expected = pooled(sites, pooled(sites, before, known), known)
    found = weights(model_owner, model, 2)
    assert np.linalg.norm(expected - before) > 1e-3
    np.testing.assert_allclose(found - before, expected - before, atol=1e-6, rtol=1e-3)
