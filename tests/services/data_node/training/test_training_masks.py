"""Runs of a model for segmentation at a site: which data set it takes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from primia.chassis.context import Context
from primia.learning import masks
from primia.learning.synthetic import draw_masks
from primia.messages import rounds as messages
from services.data_node.datasets import store as datasets
from tests.services.data_node.training.conftest import NAMES, Federation, item_row, turn


@pytest.fixture
def unet(federation) -> Federation:
    """One site, plain, asked to train a U-Net; it has a data set of class folders."""
    grid = federation(NAMES[:1], secure=False)
    proposal = grid.owner.proposal
    update = {"architecture": "unet", "image_size": 32, "width": 8}
    grid.owner.proposal = proposal.model_copy(
        update={
            "model": proposal.model.model_copy(update=update),
            "training": proposal.training.model_copy(update={"image_size": 32}),
        }
    )
    return grid


def add_masks(node: Context, root: Path, keep: int = 9) -> None:
    draw_masks(root, 3, 3, 1, 32)
    for image in sorted((root / "images").iterdir())[keep:]:
        image.unlink()
    with node.db.session() as session:
        row = datasets.register(
            session, dataset_id="7" * 32, name="lungs", kind="masks", place=str(root),
            patient_pattern=None, bad_files="strict", now=node.clock.now(),
        )  # fmt: skip
        manifest = masks.inspect(masks.scan_folder(root)).manifest
        assert manifest is not None
        datasets.accept(session, row, manifest, node.clock.now())


def decided(grid: Federation) -> messages.Decision:
    row = item_row(grid.nodes[0], turn(grid.nodes[0]))
    return messages.Decision.model_validate_json(row.answer)


def test_the_data_set_with_masks_is_taken_and_its_numbers_are_the_models_classes(
    unet: Federation, images_root: Path
):
    add_masks(unet.nodes[0], images_root / "lungs")
    found = decided(unet)
    assert found.accepted, found.reason
    assert (found.samples, found.classes) == (9, unet.owner.proposal.model.classes)


def test_without_masks_the_run_is_refused_with_the_task(unet: Federation):
    found = decided(unet)
    assert not found.accepted
    assert "it is for classification and the model for segmentation" in found.reason


def test_what_segmentation_does_not_have_is_refused_here_too(unet: Federation, images_root: Path):
    add_masks(unet.nodes[0], images_root / "lungs")
    proposal = unet.owner.proposal
    training = proposal.training.model_copy(update={"mixup": 0.5})
    unet.owner.proposal = proposal.model_copy(update={"training": training})
    found = decided(unet)
    assert not found.accepted
    assert "mixup blends the classes of two images" in found.reason


def test_a_site_with_one_image_refuses_with_the_reason(unet: Federation, images_root: Path):
    add_masks(unet.nodes[0], images_root / "lungs", keep=1)
    found = decided(unet)
    assert not found.accepted
    assert "fewer than two training images" in found.reason
