from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from primia.chassis.context import Context
from services.data_node.datasets import store, tasks
from services.data_node.datasets.store import Dataset
from tests.support.radiographs import draw


def register(ctx: Context, place: Path, kind: str = "folder", bad_files: str = "strict") -> str:
    with ctx.db.session() as session:
        return store.register(
            session,
            dataset_id="1" * 32,
            name="chest",
            kind=kind,
            place=str(place),
            patient_pattern=None,
            bad_files=bad_files,
            now=ctx.clock.now(),
        ).id


def validated(ctx: Context, *args, **options) -> tuple[Dataset, list[tuple[str, str, str]]]:
    tasks.validate(ctx, register(ctx, *args, **options))
    with ctx.db.reading() as session:
        row = store.find(session, "chest")
        page = store.problem_page(session, row, 0, 100)
        return row, [(each.file, each.severity, each.reason) for each in page]


def test_a_sound_folder_becomes_ready(node: Context, images_root: Path):
    row, problems = validated(node, draw(images_root / "chest", 3, seed=1))
    assert (row.state, row.reason, problems) == ("ready", "", [])
    assert (row.classes, row.images, row.patients) == ({"normal": 3, "viral": 3}, 6, 6)
    assert row.validated is not None


def test_what_the_images_are_like_is_recorded(lite_node: Context, images_root: Path):
    """Grey that is stored in three channels is grey."""
    root = draw(images_root / "chest", 3, seed=1)
    first, second, third, *_ = sorted((root / "normal").iterdir())
    with Image.open(first) as image:
        image.convert("RGB").save(second.with_suffix(".jpg"), quality=60)
    Image.new("RGB", (40, 64), (200, 0, 40)).save(third)
    second.unlink()
    row, _ = validated(lite_node, root)
    assert row.look == {"colour": 1, "smallest": [32, 32], "largest": [40, 64]}


def test_a_file_that_is_no_image_rejects_and_is_named(lite_node: Context, images_root: Path):
    root = draw(images_root / "chest", 3, seed=1)
    (root / "viral" / "person9_x.png").write_text("no image at all")
    row, problems = validated(lite_node, root)
    assert (row.state, row.errors) == ("rejected", 1)
    assert problems == [("viral/person9_x.png", "error", "is not an image in a format we read")]


def test_it_can_be_skipped(lite_node: Context, images_root: Path):
    root = draw(images_root / "chest", 3, seed=1)
    (root / "viral" / "person9_x.png").write_text("no image at all")
    row, problems = validated(lite_node, root, bad_files="skip")
    assert (row.state, row.images, row.errors, len(problems)) == ("ready", 6, 1, 1)
    with lite_node.db.reading() as session:
        paths = [entry.path for entry in store.manifest(session, row).entries]
    assert "viral/person9_x.png" not in paths


@pytest.mark.parametrize("bad_files", ["strict", "skip"])
def test_an_empty_class_folder_rejects(lite_node: Context, images_root: Path, bad_files: str):
    root = draw(images_root / "chest", 2, seed=1)
    (root / "bacterial").mkdir()
    row, problems = validated(lite_node, root, bad_files=bad_files)
    assert row.state == "rejected"
    assert ("bacterial", "error", "the class folder holds no images") in problems


def test_one_class_is_not_enough(lite_node: Context, images_root: Path):
    row, _ = validated(lite_node, draw(images_root / "chest", 2, seed=1, classes=("normal",)))
    assert row.state == "rejected"
    assert "at least two classes" in row.reason


def test_a_csv_is_read_with_its_patients(lite_node: Context, images_root: Path):
    root = draw(images_root / "chest", 2, seed=1)
    files = sorted(path.relative_to(root) for path in root.rglob("*.png"))
    lines = [f"{path},{path.parent},{'p1' if path.parent.name == 'viral' else 'p2'}"
             for path in files]  # fmt: skip
    (root / "list.csv").write_text("\n".join(["path,label,patient", *lines]))
    row, problems = validated(lite_node, root / "list.csv", kind="csv")
    assert (row.state, row.patients, row.images, problems) == ("ready", 2, 4, [])


def test_a_csv_without_its_columns_says_so(lite_node: Context, images_root: Path):
    (images_root / "list.csv").write_text("file,class\nx,y\n")
    row, problems = validated(lite_node, images_root / "list.csv", kind="csv")
    assert row.state == "rejected"
    assert problems == [("", "error", row.reason)]
    assert "path" in row.reason


def test_a_folder_that_has_gone_is_rejected_not_retried(lite_node: Context, images_root: Path):
    root = draw(images_root / "chest", 2, seed=1)
    dataset_id = register(lite_node, root)
    shutil.rmtree(root)
    tasks.validate(lite_node, dataset_id)
    with lite_node.db.reading() as session:
        assert store.find(session, "chest").state == "rejected"


def test_validating_twice_changes_nothing(lite_node: Context, images_root: Path):
    row, _ = validated(lite_node, draw(images_root / "chest", 2, seed=1))
    draw(images_root / "chest", 5, seed=2)
    tasks.validate(lite_node, row.id)
    with lite_node.db.reading() as session:
        again = store.find(session, "chest")
    assert (again.images, again.validated) == (row.images, row.validated)


def test_a_node_that_stops_leaves_it_for_later(lite_node: Context, images_root: Path):
    dataset_id = register(lite_node, draw(images_root / "chest", 2, seed=1))
    lite_node.jobs.stop()
    tasks.validate(lite_node, dataset_id)
    with lite_node.db.reading() as session:
        row = store.find(session, "chest")
        assert (row.state, row.lease_owner) == ("validating", None)


def test_an_unknown_one_is_ignored(lite_node: Context):
    tasks.validate(lite_node, "f" * 32)


def test_the_sweep_sends_what_still_validates(lite_node: Context, images_root: Path, monkeypatch):
    dataset_id = register(lite_node, draw(images_root / "chest", 2, seed=1))
    sent: list[tuple[str, str]] = []
    monkeypatch.setattr(lite_node.jobs, "enqueue", lambda task, row: sent.append((task, row)))
    tasks.revalidate(lite_node)
    tasks.validate(lite_node, dataset_id)
    tasks.revalidate(lite_node)
    assert sent == [("datasets.validate", dataset_id)]
