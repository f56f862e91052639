"""The state directory's files: whole or not there, and rid of what killed processes left."""

from __future__ import annotations

import os
import time

import pytest

from primia.chassis.files import Files, replace_durably

HOUR = 3600


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path / "state", 0)


def left(files, name, age, folder="halves"):
    path = files.path(folder, name)
    path.write_bytes(b"x")
    written = time.time() - age
    os.utime(path, (written, written))
    return path


def test_only_old_files_that_nobody_needs_are_removed(files):
    old, needed = left(files, "old", 2 * HOUR), left(files, "needed", 2 * HOUR)
    fresh, other = left(files, "fresh", 10), left(files, "old", 2 * HOUR, "models")
    (files.root / "halves" / "folder").mkdir()
    assert files.remove_stale("halves", HOUR, keep={"needed"}) == 1
    assert not old.exists()
    assert all(each.exists() for each in (needed, fresh, other))
    assert files.remove_stale("halves", HOUR, keep={"needed"}) == 0
    assert files.remove_stale("nowhere", HOUR) == 0


def test_a_suffix_limits_what_is_removed(files):
    weights, draft = left(files, "a.safetensors", 2 * HOUR), left(files, "a.upload", 2 * HOUR)
    assert files.remove_stale("halves", HOUR, ".upload") == 1
    assert weights.exists()
    assert not draft.exists()


def test_a_write_that_breaks_leaves_the_old_file_and_no_draft(files):
    path = files.path("models", "weights")
    files.write(path, b"old")

    def broken():
        with files.replacing(path) as file:
            file.write(b"half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert path.read_bytes() == b"old"
    assert [each.name for each in path.parent.iterdir()] == ["weights"]


def test_a_rename_replaces_what_was_there(files):
    source, target = left(files, "new", 0), left(files, "name", 0)
    source.write_bytes(b"new")
    replace_durably(source, target)
    assert target.read_bytes() == b"new"
    assert not source.exists()
