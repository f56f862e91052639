"""Data sets of images with masks, registered and validated at a site."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from primia.chassis.context import Context
from primia.learning.synthetic import draw_masks
from services.data_node.datasets import store, tasks
from services.data_node.datasets.domain import misfit


def registered(ctx: Context, client: TestClient, root: Path) -> dict:
    body = {"name": "lungs", "path": str(root), "task": "segmentation"}
    answer = client.post("/datasets", json=body)
    assert answer.status_code == 202, answer.text
    with ctx.db.reading() as session:
        dataset_id = store.find(session, "lungs").id
    tasks.validate(ctx, dataset_id)
    return client.get("/datasets/lungs").json()


def test_images_with_masks_become_ready(lite_node: Context, client: TestClient, images_root: Path):
    draw_masks(images_root / "lungs", 2, 2, 1, 32)
    shown = registered(lite_node, client, images_root / "lungs")
    assert (shown["state"], shown["kind"], shown["images"]) == ("ready", "masks", 6)
    assert shown["classes"] == {"0": 0, "1": 6}


def test_what_is_wrong_is_named_file_by_file(
    lite_node: Context, client: TestClient, images_root: Path
):
    root = images_root / "lungs"
    draw_masks(root, 2, 2, 1, 32)
    missing, broken, *_ = sorted((root / "masks").iterdir())
    missing.unlink()
    broken.write_bytes(b"nothing")
    shown = registered(lite_node, client, root)
    assert (shown["state"], shown["errors"]) == ("rejected", 2)
    found = client.get("/datasets/lungs/problems").json()["problems"]
    named = {each["file"]: each["reason"] for each in found}
    assert "has no mask" in named[f"images/{missing.stem}.jpeg"]
    assert "is damaged" in named[f"masks/{broken.name}"]


def test_a_list_of_masks_is_refused(lite_node: Context, client: TestClient, images_root: Path):
    body = {"name": "lungs", "csv": str(images_root / "x.csv"), "task": "segmentation"}
    answer = client.post("/datasets", json=body)
    assert answer.status_code == 422
    assert "are a folder, not a list" in answer.text


@pytest.mark.parametrize(
    ("kind", "counts", "architecture", "reason"),
    [
        ("masks", {"0": 0, "1": 6}, "unet", ""),
        ("masks", {"0": 9}, "unet", ""),
        ("masks", {"0": 0, "1": 6, "2": 1}, "unet", "classes up to 2, and the model's end at 1"),
        ("masks", {"0": 0, "1": 6}, "resnet18", "for segmentation and the model for class"),
        ("folder", {"a": 3, "b": 6}, "unet", "for classification and the model for segm"),
        ("folder", {"a": 3, "b": 6}, "resnet18", ""),
        ("folder", {"a": 3, "c": 6}, "resnet18", "it lacks b and the model does not know c"),
    ],
)
def test_a_data_set_fits_models_of_its_task(kind, counts, architecture, reason):
    found = misfit(kind, counts, architecture, ("a", "b"))
    assert (reason in found) if reason else (found == "")
