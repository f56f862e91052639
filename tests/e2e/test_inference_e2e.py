"""Encrypted inference with real processes: right, through crashes, refusing what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import httpx
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from primia.chassis.identity import Identity
from primia.errors import PeerRefused, Unavailable
from primia.grid import layout
from primia.grid.processes import up
from primia.learning import images
from primia.learning.calibration import pack
from primia.learning.layout import read_state
from primia.learning.models import load_model, spec_layout
from primia.messages.inference import Accuracy, FixedProtocol, Protocol, ServeRequest
from tests.support.grid import CLASSES, SIDE, World, draw_images
from tests.support.servers import wait_until

pytestmark = pytest.mark.e2e


def served(world: World, name: str, architecture: str, batch: int) -> str:
    model = world.model(name, architecture)
    world.owner.serve(model, 1, ServeRequest(stock=1, batch=batch))
    world.owner.wait_served(model, 1)
    return model


def pictures(world: World, count: int) -> list[Path]:
    folder = world.grid.home(world.grid.member("hospital-b")) / "images" / "set"
    return sorted(folder.rglob("*.png"))[::3][:count]


def plain_logits(world: World, model: str, files: list[Path], folder: Path) -> np.ndarray:
    weights = folder / f"{model}.safetensors"
    world.owner.weights(model, 1, weights)
    spec = next(m.spec for m in world.owner.models().models if m.name == model)
    module = load_model(spec, read_state(weights.read_bytes(), spec_layout(spec))).eval()
    pixels = [images.load(file, spec.image_size, spec.channels) for file in files]
    batch = np.stack([images.normalise(each, spec.mean, spec.std) for each in pixels])
    with torch.no_grad():
        return module(torch.from_numpy(batch)).numpy()


@pytest.fixture(scope="session")
def small(sqlite_world: World) -> str:
    return served(sqlite_world, "small", "small_cnn", batch=2)


@pytest.fixture(scope="session")
def resnet(sqlite_world: World) -> str:
    return served(sqlite_world, "resnet", "resnet18", batch=2)


def check(world: World, model: str, folder: Path, protocol: Protocol = "fss") -> None:
    files = pictures(world, 2)
    plain = plain_logits(world, model, files, folder)
    node = world.nodes["hospital-a"]
    job = node.infer(files, model, result="scores", protocol=protocol)
    assert node.wait_inference(job.id).state == "done", node.inference(job.id).reason
    predictions = node.result(job.id).predictions
    scores = np.array([[(p.scores or {})[name] for name in CLASSES] for p in predictions])
    assert np.abs(scores - plain).max() < 0.01
    job = node.infer(files, model, result="label", protocol=protocol)
    assert node.wait_inference(job.id).state == "done", node.inference(job.id).reason
    chosen = [CLASSES.index(p.label) for p in node.result(job.id).predictions]
    # Of scores that are nearer to each other than rounding is, either is the largest.
    assert (plain[range(2), chosen] > plain.max(1) - 0.01).all()
    assert all(p.scores is None for p in node.result(job.id).predictions)


def test_encrypted_predictions_are_the_plain_ones(sqlite_world: World, small: str, tmp_path: Path):
    check(sqlite_world, small, tmp_path)


def test_a_resnet_takes_19_requests(sqlite_world: World, resnet: str, tmp_path: Path):
    check(sqlite_world, resnet, tmp_path)
    newest = sqlite_world.nodes["hospital-a"].inferences().inferences
    assert {job.steps for job in newest if job.model == resnet and job.result == "scores"} == {19}


def test_the_same_by_securenn(sqlite_world: World, resnet: str, tmp_path: Path):
    check(sqlite_world, resnet, tmp_path, "securenn")
    newest = sqlite_world.nodes["hospital-a"].inferences().inferences
    # A ReLU a layer, four levels of pooling; for a label, two more among three classes.
    assert {job.steps for job in newest if job.protocol == "securenn"} == {21, 23}


@pytest.mark.parametrize("victim", ["model-owner", "crypto-provider"])
def test_securenn_is_tried_again_when_a_party_dies(
    sqlite_world: World, resnet: str, tmp_path: Path, victim: str
):
    world = sqlite_world
    node = world.nodes["hospital-a"]
    files = pictures(world, 2)
    job = node.infer(files, resnet, result="scores", protocol="securenn")
    wait_until(lambda: node.inference(job.id).phase in ("offline", "online"), 60, "the session")
    world.kill(victim, "api")
    world.start(victim, "api")
    up(world.grid)
    status = node.wait_inference(job.id)
    assert status.state == "done", status.reason
    assert status.attempts > 1
    plain = plain_logits(world, resnet, files, tmp_path)
    predictions = node.result(job.id).predictions
    scores = np.array([[(p.scores or {})[name] for name in CLASSES] for p in predictions])
    assert np.abs(scores - plain).max() < 0.01


def test_the_same_on_postgresql(postgresql_world: World, tmp_path: Path):
    model = served(postgresql_world, "small", "small_cnn", batch=2)
    check(postgresql_world, model, tmp_path)


@pytest.mark.parametrize(
    ("victim", "part"),
    [("model-owner", "worker"), ("model-owner", "api"), ("hospital-a", "worker")],
)
def test_a_broken_session_is_burned_and_the_image_classified_all_the_same(
    sqlite_world: World, resnet: str, tmp_path: Path, victim: str, part: str
):
    world = sqlite_world
    node = world.nodes["hospital-a"]
    files = pictures(world, 2)
    job = node.infer(files, resnet, result="scores")
    wait_until(lambda: node.inference(job.id).phase in ("offline", "online"), 60, "the session")
    world.kill(victim, part)
    world.start(victim, part)
    up(world.grid)
    status = node.wait_inference(job.id)
    assert status.state == "done", status.reason
    plain = plain_logits(world, resnet, files, tmp_path)
    predictions = node.result(job.id).predictions
    scores = np.array([[(p.scores or {})[name] for name in CLASSES] for p in predictions])
    assert np.abs(scores - plain).max() < 0.01


def test_the_dealer_may_die_while_it_deals(sqlite_world: World, small: str):
    world = sqlite_world
    node = world.nodes["hospital-b"]
    world.kill("crypto-provider", "worker")
    job = node.infer(pictures(world, 3), small)  # a batch that is not in stock
    world.start("crypto-provider", "worker")
    assert node.wait_inference(job.id).state == "done", node.inference(job.id).reason


def test_bad_images_and_unknown_models_are_refused_by_name(
    sqlite_world: World, small: str, tmp_path: Path
):
    node = sqlite_world.nodes["hospital-a"]
    text = tmp_path / "notes.png"
    text.write_text("this is no picture")
    with pytest.raises(PeerRefused, match=r"notes\.png"):
        node.infer([text], small)
    with pytest.raises(PeerRefused, match="nothing"):
        node.infer(pictures(sqlite_world, 1), "nothing")


def test_no_endpoint_but_health_answers_a_stranger(sqlite_world: World):
    for member in sqlite_world.grid.members:
        stranger = Identity.fresh("stranger").token(member.name)
        expired = sqlite_world.grid.operator().token(member.name, lifetime=-120)
        foreign = sqlite_world.grid.operator().token("somebody-else")
        assert httpx.get(f"{member.url}/health/live").status_code == 200
        for path in ("/", "/docs", "/metrics", "/rounds", "/inference", "/deals", "/node/work"):
            for token in (None, stranger, expired, foreign):
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                answer = httpx.get(member.url + path, headers=headers)
                assert answer.status_code == 401, (member.name, path)
                assert answer.headers["content-type"] == "application/problem+json"


def check_weights_from_a_file(primia, world: World, model: str) -> None:
    """Download, import as the next version, calibrate with a site's own images."""
    file = world.grid.root / "weights.safetensors"
    assert primia("models", "download", model, "1", str(file)).returncode == 0
    found = primia("models", "import", model, str(file), "--format", "json")
    assert found.returncode == 0, found.stderr
    version = json.loads(found.stdout)
    assert (version["state"], version["parent"]) == ("ready", 1)
    again = file.with_name("again.safetensors")
    world.owner.weights(model, version["version"], again)
    left, right = load_file(file), load_file(again)
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[name], right[name]) for name in left)
    folder = pictures(world, 1)[0].parent
    sent = primia(
        "models", "calibrate", model, str(version["version"]), str(folder), "--count", "3"
    )
    assert sent.returncode == 0, sent.stderr
    assert "images will be used" in sent.stdout
    empty = primia("models", "calibrate", model, "1", str(world.grid.root / "run"))
    assert empty.returncode == 1
    assert len(empty.stderr.strip().splitlines()) == 1


def test_the_command_line(sqlite_world: World, small: str):
    root = sqlite_world.grid.root

    def primia(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).parent / "primia"), *arguments]
        environment = {**os.environ, "PRIMIA_GRID": str(root)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    status = json.loads(primia("grid", "status", "--format", "json").stdout)
    assert {each["member"] for each in status["processes"]} >= {layout.OWNER, *layout.NODES}
    assert all(each["pid"] for each in status["processes"])
    models = json.loads(primia("models", "list", "--format", "json").stdout)
    assert small in {model["name"] for model in models["models"]}
    picture = str(pictures(sqlite_world, 1)[0])
    arguments = ("infer", picture, "--model", small, "--node", "hospital-a", "--format", "json")
    for protocol in ("fss", "securenn"):
        answer = primia(*arguments, "--protocol", protocol)
        assert answer.returncode == 0, answer.stderr
        said = json.loads(answer.stdout)
        assert said["predictions"][0]["label"] in CLASSES
        assert (said["state"], said["protocol"], said["accuracy"]) == ("done", protocol, "exact")
        assert said["cost"]["online_bytes"] > 0
    assert "fss or securenn" in primia(*arguments, "--protocol", "aes").stderr
    check_weights_from_a_file(primia, sqlite_world, small)
    wrong = primia("infer", picture, "--model", "nothing", "--node", "hospital-a")
    assert wrong.returncode == 1
    assert len(wrong.stderr.strip().splitlines()) == 1
    assert "nothing" in wrong.stderr
    nowhere = primia("dataset", "add", "x", "/etc", "--node", "hospital-a")
    assert nowhere.returncode == 1
    assert len(nowhere.stderr.strip().splitlines()) == 1


def test_calibrated_windows_take_half_the_material(
    sqlite_world: World, resnet: str, tmp_path: Path
):
    """The owner calibrates on images of its own; the node asks for it and hears how it agrees."""
    world, node = sqlite_world, sqlite_world.nodes["hospital-a"]
    own = tmp_path / "own"
    draw_images(own, 77, each=8)
    pixels = np.stack([images.load(file, SIDE, 1) for file in sorted(own.rglob("*.png"))])
    world.owner.calibrate(resnet, 1, pack(pixels))
    wanted = ServeRequest(results=("scores",), accuracies=("calibrated",), stock=0)
    world.owner.serve(resnet, 1, wanted)
    servings = world.owner.wait_served(resnet, 1).servings
    (serving,) = [s for s in servings if s.accuracy == "calibrated"]
    assert serving.agreement is not None
    assert serving.agreement.images == 6
    assert serving.agreement.largest_difference < 0.05
    files = pictures(world, 1)
    costs = {}
    for accuracy in get_args(Accuracy):
        job = node.infer(files, resnet, 1, "scores", accuracy=accuracy)
        status = node.wait_inference(job.id)
        assert (status.state, status.accuracy) == ("done", accuracy), status.reason
        costs[accuracy] = status.cost
        (prediction,) = node.result(job.id).predictions
        found = np.array([(prediction.scores or {})[name] for name in CLASSES])
        plain = plain_logits(world, resnet, files, tmp_path)[0]
        assert np.abs(found - plain).max() < (0.05 if accuracy == "calibrated" else 0.01)
    assert status.agreement == serving.agreement
    job = node.infer(files, resnet, 1, "scores", "auto", "calibrated")
    status = node.wait_inference(job.id)
    assert status.state == "done", status.reason
    assert status.protocol in get_args(FixedProtocol)
    for way in ("fss exact", "fss calibrated", "securenn exact", "Measured: owner"):
        assert way in status.chosen
    assert costs["calibrated"].online_bytes < costs["exact"].online_bytes
    with pytest.raises(PeerRefused, match="SecureNN compares whole values"):
        node.infer(files, resnet, 1, "scores", "securenn", "calibrated")


def test_windows_without_images_are_refused_with_what_to_do(sqlite_world: World):
    world = sqlite_world
    model = world.model("unmeasured", "small_cnn")
    world.owner.serve(model, 1, ServeRequest(results=("label",), accuracies=("calibrated",)))
    with pytest.raises(Unavailable, match=r"windows need images .* `primia models calibrate`"):
        world.owner.wait_served(model, 1)
