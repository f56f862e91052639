"""A U-Net on drawn lungs: images with masks at three sites, summed securely, by the command."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from primia.cli.main import create_app
from primia.messages.runs import RunDocument
from tests.support.grid import SIDE, World

pytestmark = pytest.mark.e2e


def primia(*words: str) -> None:
    done = CliRunner().invoke(create_app(), list(words))
    assert done.exit_code == 0, done.output


def test_a_unet_learns_lungs_from_masks_at_three_sites(
    sqlite_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    world = sqlite_world
    monkeypatch.setenv("PRIMIA_GRID", str(world.grid.root))
    for seed, name in enumerate(world.names):
        folder = str(world.grid.home(world.grid.member(name)) / "images" / "lungs")
        primia("dataset", "draw", folder, "--masks", "--images", "12", "--patients", "12",
               "--size", str(SIDE), "--seed", str(seed))  # fmt: skip
        primia("dataset", "add", "lungs", folder, "--masks", "--node", name)
        found = world.nodes[name].dataset("lungs")
        assert (found["state"], found["kind"], found["images"]) == ("ready", "masks", 36)
    primia("models", "create", "lungs", "--classes", "background,lung", "--architecture", "unet",
           "--image-size", str(SIDE), "--channels", "1", "--width", "8")  # fmt: skip
    settings = {
        "compare": "[1]", "training.image_size": SIDE, "training.epochs": 3,
        "training.batch_size": 4, "training.learning_rate": 3e-3,
        "training.validation_fraction": 0.4,
    }  # fmt: skip
    options = [word for pair in settings.items() for word in ("--set", "{}={}".format(*pair))]
    primia("rounds", "start", "lungs", "--nodes", ",".join(world.names), "--rounds", "2", *options)
    (run,) = [each for each in world.owner.runs().runs if each.model == "lungs"]
    report = world.wait_run(run.id)
    assert report.state == "finished", report.reason
    assert report.secure
    page, document = tmp_path / "page.html", tmp_path / "run.json"
    primia("rounds", "report", run.id, "--html", str(page), "--json", str(document))
    assert "mean IoU" in page.read_text()
    models = RunDocument.model_validate_json(document.read_bytes()).models
    found = {each.model: each.overall.validation for each in models}
    before, after = found["version-1"], found["last"]
    assert before is not None
    assert after is not None
    assert before.dice is not None
    assert after.dice is not None
    assert after.iou is not None
    assert after.dice > max(0.7, before.dice + 0.2)
    assert after.iou == pytest.approx(after.dice / (2 - after.dice))  # of one class
    assert report.final is not None
    assert report.final.accuracy is not None
    assert report.final.accuracy > 0.7  # the mean Dice of the sites
