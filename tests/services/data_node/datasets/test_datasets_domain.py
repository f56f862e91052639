from __future__ import annotations

from pathlib import Path

import pytest

from primia.errors import Conflict, Forbidden, InvalidInput
from primia.learning.datasets import Inspection, Problem
from primia.learning.manifest import DatasetManifest, Entry
from services.data_node.datasets.domain import (
    TRANSITIONS,
    allowed_place,
    colour_lost,
    mismatch,
    move,
    verdict,
)

MANIFEST = DatasetManifest.of(
    [Entry("a/1.png", "a", "p1", "0" * 64), Entry("b/1.png", "b", "p2", "1" * 64)]
)


def test_colour_is_lost_on_a_grey_model_alone() -> None:
    assert "9 of its 16 images are in colour" in colour_lost(9, 16, 1)
    assert colour_lost(8, 16, 1) == ""  # half of them: made grey
    assert colour_lost(16, 16, 3) == ""
    assert colour_lost(0, 16, 3) == ""  # grey is repeated


def test_only_listed_transitions_are_made():
    for present, allowed in TRANSITIONS.items():
        for wanted in TRANSITIONS:
            if wanted in allowed:
                assert move(present, wanted) == wanted
            else:
                with pytest.raises(Conflict, match=f"{present} cannot become {wanted}"):
                    move(present, wanted)


def test_a_place_below_a_root_is_allowed(tmp_path: Path):
    (tmp_path / "open" / "x").mkdir(parents=True)
    assert allowed_place(str(tmp_path / "open" / "x"), [tmp_path / "open"]) == (
        tmp_path / "open" / "x"
    )


@pytest.mark.parametrize("given", ["/etc", "/", "{root}/../secret", "{root}/link", "{root}-other"])
def test_a_place_outside_is_refused_whether_it_exists_or_not(tmp_path: Path, given: str):
    root = tmp_path / "open"
    root.mkdir()
    (tmp_path / "secret").mkdir()
    (root / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(Forbidden, match="outside the folders"):
        allowed_place(given.format(root=root), [root])


def test_without_roots_nothing_can_be_registered(tmp_path: Path):
    with pytest.raises(Forbidden):
        allowed_place(str(tmp_path), [])


@pytest.mark.parametrize(
    ("given", "reason"), [("images", "absolute"), ("/x\0y", "absolute"), ("{root}/no", "nothing")]
)
def test_a_place_that_is_none_is_named(tmp_path: Path, given: str, reason: str):
    with pytest.raises(InvalidInput, match=reason):
        allowed_place(given.format(root=tmp_path), [tmp_path])


def test_a_sound_data_set_is_ready_and_notes_do_not_matter():
    note = Problem("readme.txt", "left out", "note")
    assert verdict(Inspection(MANIFEST, (note,)), "folder", "strict") is None


def test_a_bad_file_rejects_strictly_and_can_be_skipped():
    found = Inspection(MANIFEST, (Problem("a/2.png", "is damaged"),))
    assert verdict(found, "folder", "strict") == "1 file cannot be used: see its problems."
    assert verdict(found, "folder", "skip") is None


def test_an_empty_class_cannot_be_skipped():
    found = Inspection(MANIFEST, (Problem("c", "the class folder holds no images"),))
    assert verdict(found, "folder", "skip") == "c: the class folder holds no images."


def test_in_a_csv_a_file_may_lie_beside_it():
    found = Inspection(MANIFEST, (Problem("1.png", "is damaged"),))
    assert verdict(found, "csv", "skip") is None


def test_what_is_wrong_with_the_whole_always_rejects():
    found = Inspection(None, (Problem("", "at least two classes are needed, 1 found"),))
    assert "two classes" in (verdict(found, "csv", "skip") or "")


def test_classes_are_compared_without_their_order():
    assert mismatch({"b": 1, "a": 2}, ["a", "b"]) is None
    assert mismatch({"a": 1, "c": 1}, ["a", "b"]) == "it lacks b and the model does not know c"
