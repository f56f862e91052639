"""Statistics, normalisation and differential privacy with real processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from primia.learning import images
from primia.learning.layout import read_state
from primia.learning.models import load_model, spec_layout
from primia.messages.inference import ServeRequest
from primia.messages.registry import NewModel
from primia.messages.rounds import RunRequest
from tests.support.grid import CLASSES, SIDE, World

pytestmark = pytest.mark.e2e


def start(world: World, model: str, **settings: object) -> str:
    request = {
        "model": model,
        "nodes": world.names,
        "rounds": 1,
        "training": {"image_size": SIDE, "batches": 4, "batch_size": 8, "seed": 3},
        **settings,
    }
    return world.owner.start_run(RunRequest.model_validate(request)).id


def test_a_model_is_trained_and_served_with_measured_normalisation(
    sqlite_world: World, tmp_path: Path
):
    world = sqlite_world
    model = world.model("measured")
    report = world.wait_run(start(world, model, statistics={"normalise": True}))
    assert (report.state, report.reason) == ("finished", "")
    assert report.statistics is not None
    assert report.statistics.images > 60
    version = report.final_version
    assert version is not None
    mean, std = report.statistics.normalisation()
    world.owner.serve(model, version, ServeRequest(stock=1, batch=1))
    world.owner.wait_served(model, version)
    folder = world.grid.home(world.grid.member("hospital-b")) / "images" / "set"
    file = sorted(folder.rglob("*.png"))[0]
    node = world.nodes["hospital-a"]
    job = node.infer([file], model, version, "scores")
    assert node.wait_inference(job.id).state == "done", node.inference(job.id).reason
    (prediction,) = node.result(job.id).predictions
    scores = np.array([(prediction.scores or {})[name] for name in CLASSES])
    weights = tmp_path / "weights.safetensors"
    world.owner.weights(model, version, weights)
    spec = next(m.spec for m in world.owner.models().models if m.name == model)
    module = load_model(spec, read_state(weights.read_bytes(), spec_layout(spec)))
    pixels = images.load(file, SIDE, spec.channels)[np.newaxis]
    with torch.no_grad():
        plain = module(torch.from_numpy(images.normalise(pixels, mean, std))).numpy()[0]
        other = module(torch.from_numpy(images.normalise(pixels, spec.mean, spec.std))).numpy()[0]
    assert np.abs(scores - plain).max() < 0.01
    assert np.abs(other - plain).max() > 0.01  # the measured values make a difference


def test_a_private_run_is_charged_at_each_site(sqlite_world: World):
    world = sqlite_world
    spec = {"architecture": "small_cnn", "classes": CLASSES, "image_size": SIDE, "norm": "group"}
    world.owner.create_model(NewModel.model_validate({"name": "private", **spec}))
    world.owner.wait_version("private", 1)
    run = start(world, "private", rounds=2, privacy={"dp_sgd": {"epsilon": 5.0}})
    report = world.wait_run(run)
    assert (report.state, report.reason) == ("finished", "")
    for node in world.nodes.values():
        charges = [
            charge
            for account in node.privacy()["accounts"]
            for charge in account["runs"]
            if charge["run"] == run
        ]
        assert [(charge["rounds"], charge["steps"]) for charge in charges] == [(2, 8)]
        assert charges[0]["epsilon"] == pytest.approx(5.0, rel=0.02)
