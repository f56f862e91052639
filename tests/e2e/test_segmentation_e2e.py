"""A U-Net on drawn lungs: images with masks at three sites, summed securely."""

from __future__ import annotations

import pytest

from primia.learning.synthetic import draw_masks
from primia.messages.registry import NewModel
from primia.messages.rounds import RunRequest, TrainingSettings
from tests.support.grid import SIDE, World

pytestmark = pytest.mark.e2e


def test_a_unet_learns_lungs_from_masks_at_three_sites(sqlite_world: World):
    world = sqlite_world
    for seed, (name, client) in enumerate(world.nodes.items()):
        folder = world.grid.home(world.grid.member(name)) / "images" / "lungs"
        draw_masks(folder, 12, 12, seed, SIDE)
        client.add_dataset({"name": "lungs", "path": str(folder), "task": "segmentation"})
    for client in world.nodes.values():
        found = client.wait_dataset("lungs")
        assert (found["state"], found["kind"], found["images"]) == ("ready", "masks", 36)
    spec = {"architecture": "unet", "classes": ("background", "lung"), "image_size": SIDE}
    world.owner.create_model(NewModel.model_validate({"name": "lungs", "width": 8, **spec}))
    world.owner.wait_version("lungs", 1)
    training = TrainingSettings(
        image_size=SIDE, epochs=3, batch_size=4, learning_rate=3e-3, seed=3, validation_fraction=0.4
    )
    request = RunRequest(
        model="lungs", nodes=world.names, rounds=3, compare=(1,), training=training
    )
    report = world.wait_run(world.owner.start_run(request).id)
    assert report.state == "finished", report.reason
    assert report.task == "segmentation"
    assert report.secure
    found = {each.model: each.overall.validation for each in world.owner.report(report.id).models}
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
    assert "mean IoU" in world.owner.report_page(report.id)
