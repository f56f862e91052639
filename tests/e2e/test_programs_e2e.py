"""A user's own network, from torch.export to an encrypted inference, by the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn
from typer.testing import CliRunner

from primia.cli.main import create_app
from primia.learning.programs.file import save_program
from primia.messages.inference import ServeRequest
from primia.messages.rounds import RunRequest
from tests.support.grid import CLASSES, SIDE, World
from tests.support.programs import export

pytestmark = pytest.mark.e2e


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.skip = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, len(CLASSES))
        self.drop = nn.Dropout(0.1)

    def forward(self, images):
        found = self.features(images)
        found = nn.functional.relu(found + self.skip(found))
        pooled = nn.functional.adaptive_avg_pool2d(found, 1).flatten(1)
        return self.head(self.drop(pooled))


def test_a_program_is_added_approved_trained_and_served(
    sqlite_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    world = sqlite_world
    monkeypatch.setenv("PRIMIA_GRID", str(world.grid.root))

    def primia(*words: str) -> str:
        done = CliRunner().invoke(create_app(), words)
        assert done.exit_code == 0, done.output
        return done.output

    file = tmp_path / "net.program"
    digest = save_program(export(Net().train(), 1, SIDE, SIDE), file).digest
    described = primia("programs", "show", str(file))
    assert f"Program {digest}" in described
    assert "conv2d features.0 of 0: 8 × 16 × 16" in described
    made = primia("models", "add", "own", "--program", str(file), "--classes", ",".join(CLASSES))
    assert digest in made.replace("\n", "")
    request = RunRequest.model_validate(
        {
            "model": "own",
            "nodes": world.names,
            "rounds": 1,
            "training": {"image_size": SIDE, "batches": 4, "batch_size": 8},
        }
    )
    refused = world.wait_run(world.owner.start_run(request).id)
    assert refused.state == "failed"
    assert "has not approved" in refused.reason
    # The first site's refusal ends the run, so that others may never have been asked.
    assert any("waits" in primia("programs", "list", "--node", node) for node in world.nodes)
    for node in world.nodes:
        assert "is approved, by operator" in primia("programs", "approve", digest, "--node", node)
    report = world.wait_run(world.owner.start_run(request).id)
    assert (report.state, report.reason) == ("finished", "")
    version = report.final_version
    assert version == 3
    world.owner.serve("own", version, ServeRequest(stock=1, batch=1))
    world.owner.wait_served("own", version)
    folder = world.grid.home(world.grid.member("hospital-b")) / "images" / "set"
    node = world.nodes["hospital-a"]
    job = node.infer([sorted(folder.rglob("*.png"))[0]], "own", version)
    assert node.wait_inference(job.id).state == "done", node.inference(job.id).reason
