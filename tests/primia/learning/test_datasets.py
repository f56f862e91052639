import os
from collections.abc import Callable
from pathlib import Path

import pytest

from primia.errors import InvalidInput
from primia.learning import datasets
from primia.learning.datasets import Sound, inspect, safe_path, scan_csv, scan_folder, validate

Draw = Callable[[Path, int], Path]


@pytest.fixture
def folder(tmp_path: Path, draw: Draw) -> Path:
    root = tmp_path / "chest"
    for number in range(3):
        draw(root / "normal" / f"IM-{number}-0001.png", number)
        draw(root / "viral" / f"person{number}_virus_1.png", 10 + number)
    return root


def _problems(root: Path) -> dict[str, str]:
    return {problem.path: problem.reason for problem in inspect(scan_folder(root)).problems}


def test_a_sound_folder(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = inspect(scan_folder(folder), lambda done, total: seen.append((done, total)))
    assert found.problems == ()
    assert found.manifest is not None
    assert found.manifest.classes == ("normal", "viral")
    assert found.manifest.counts == {"normal": 3, "viral": 3}
    first = found.manifest.entries[0]
    assert (first.path, first.label, first.patient) == ("normal/IM-0-0001.png", "normal", "IM-0")
    assert len(first.sha256) == 64
    assert seen == [(number, 6) for number in range(1, 7)]


def test_deeper_folders_belong_to_their_class(folder: Path, draw: Draw) -> None:
    draw(folder / "viral" / "P9" / "front.png", 99)
    found = inspect(scan_folder(folder, r"/(P\d+)/")).manifest
    assert found is not None
    entry = next(entry for entry in found.entries if entry.path == "viral/P9/front.png")
    assert (entry.label, entry.patient) == ("viral", "P9")


def test_every_bad_file_is_named_and_the_rest_is_kept(folder: Path) -> None:
    (folder / "viral" / "text.png").write_text("this is no image")
    whole = (folder / "viral" / "person0_virus_1.png").read_bytes()
    (folder / "viral" / "cut.png").write_bytes(whole[:-100])
    (folder / "viral" / "empty.png").touch()
    (folder / "viral" / "notes.txt").write_text("left out")
    (folder / "viral" / ".DS_Store").write_text("left behind")
    (folder / "readme.md").write_text("beside")
    found = inspect(scan_folder(folder))
    reasons = {problem.path: problem for problem in found.problems}
    assert "not an image" in reasons["viral/text.png"].reason
    assert "cut short" in reasons["viral/cut.png"].reason
    assert "not an image" in reasons["viral/empty.png"].reason
    assert reasons["viral/notes.txt"].severity == "note"
    assert reasons["readme.md"].severity == "note"
    assert len(reasons) == 5
    assert {problem.path for problem in found.errors} == {
        "viral/text.png",
        "viral/cut.png",
        "viral/empty.png",
    }
    assert found.manifest is not None
    assert len(found.manifest) == 6


def test_an_empty_class_folder_and_a_single_class(folder: Path) -> None:
    (folder / "bacterial").mkdir()
    assert _problems(folder)["bacterial"] == "the class folder holds no images"
    for file in (folder / "viral").iterdir():
        file.unlink()
    found = inspect(scan_folder(folder))
    assert found.manifest is None
    assert any("at least two classes" in str(problem) for problem in found.errors)


def test_a_class_whose_images_are_all_bad_is_named(folder: Path) -> None:
    for file in (folder / "viral").iterdir():
        file.write_text("broken")
    found = inspect(scan_folder(folder))
    assert found.manifest is None
    assert any("'viral' has no image" in problem.reason for problem in found.errors)


def test_duplicates(folder: Path) -> None:
    data = (folder / "viral" / "person0_virus_1.png").read_bytes()
    (folder / "viral" / "person0_virus_2.png").write_bytes(data)
    found = inspect(scan_folder(folder))
    assert found.errors == ()
    assert [str(problem) for problem in found.problems] == [
        "viral/person0_virus_2.png: is the same file as viral/person0_virus_1.png: left out"
    ]
    assert found.manifest is not None
    assert len(found.manifest) == 6
    (folder / "normal" / "IM-9-0001.png").write_bytes(data)
    conflicts = inspect(scan_folder(folder)).errors
    assert [conflict.path[-5:] for conflict in conflicts] == ["1.png", "2.png"]
    assert all("the label 'normal'" in conflict.reason for conflict in conflicts)


def test_links_that_lead_out_are_problems_and_never_read(folder: Path, draw: Draw) -> None:
    secret = draw(folder.parent / "elsewhere" / "secret.png", 77)
    (folder / "viral" / "link.png").symlink_to(secret)
    (folder / "viral" / "folder").symlink_to(secret.parent)
    (folder / "stolen").symlink_to(secret.parent)
    (folder / "viral" / "inner.png").symlink_to(folder / "normal" / "IM-0-0001.png")
    (folder / "viral" / "nowhere.png").symlink_to(folder / "gone.png")
    problems = _problems(folder)
    assert "leads out" in problems["viral/link.png"]
    assert "not followed" in problems["viral/folder"]
    assert "not followed" in problems["stolen"]
    assert "'normal'" in problems["viral/inner.png"]
    assert "does not exist" in problems["viral/nowhere.png"]


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "viral" / "pipe.png")
    assert _problems(folder)["viral/pipe.png"] == "is not a regular file"


def test_names_that_are_not_utf8_or_not_printable(folder: Path) -> None:
    os.mkdir(os.fsencode(folder / "viral") + b"/\xff")
    with open(os.fsencode(folder / "viral") + b"/\xfe.png", "wb") as file:
        file.write(b"x")
    (folder / "new\nline").mkdir()
    problems = _problems(folder)
    assert any("\\udcfe.png" in path and "UTF-8" in why for path, why in problems.items())
    assert "printable" in problems["new\nline"]


def test_a_file_that_may_not_be_read(folder: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (folder / "viral" / "person0_virus_1.png").chmod(0)
    assert "cannot be read" in _problems(folder)["viral/person0_virus_1.png"]


def test_a_missing_folder_and_too_many_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="There is no folder"):
        scan_folder(folder / "nowhere")
    monkeypatch.setattr(datasets, "MAX_FILES", 4)
    with pytest.raises(InvalidInput, match="at most 4 files"):
        scan_folder(folder)


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x.png", "a/../../x", "a\0b", ".", "nope"])
def test_unsafe_paths(folder: Path, path: str) -> None:
    with pytest.raises(InvalidInput):
        safe_path(folder, path)


def _csv(folder: Path, text: str, **options: str) -> Path:
    file = folder / "list.csv"
    file.write_text(text, encoding=options.get("encoding", "utf-8"))
    return file


def test_a_sound_csv(folder: Path) -> None:
    text = """path,label,patient,age
normal/IM-0-0001.png,healthy,A,3
viral\\person1_virus_1.png,ill,,4

normal/IM-1-0001.png , healthy
"""
    found = inspect(scan_csv(_csv(folder, text))).manifest
    assert found is not None
    assert [(entry.label, entry.patient) for entry in found.entries] == [
        ("healthy", "A"),
        ("healthy", "IM-1"),
        ("ill", "person1"),
    ]


def test_semicolons_byte_order_marks_and_another_root(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    text = "Path;Label\nnormal/IM-0-0001.png;a\nviral/person1_virus_1.png;b\n"
    file.write_text(text, encoding="utf-8-sig")
    assert inspect(scan_csv(file, folder)).problems == ()


def test_what_is_wrong_in_a_csv_is_named_by_line(folder: Path) -> None:
    text = """path,label
normal/IM-0-0001.png,
,viral
normal/IM-1-0001.png,normal
normal/IM-1-0001.png,viral
/etc/hostname,viral
../chest/viral/person1_virus_1.png,viral
viral/person1_virus_1.png,viral
viral/gone.png,viral
viral,viral
viral/person2_virus_1.png,vi\tral
"""
    found = inspect(scan_csv(_csv(folder, text)))
    reasons = {problem.path: problem.reason for problem in found.errors}
    assert reasons["normal/IM-0-0001.png"] == "the label is missing (line 2)"
    assert reasons["line 3"] == "the path is missing (line 3)"
    assert reasons["normal/IM-1-0001.png"] == "stands in the list twice (line 5)"
    assert "not a relative path" in reasons["/etc/hostname"]
    assert "not a relative path" in reasons["../chest/viral/person1_virus_1.png"]
    assert "does not exist" in reasons["viral/gone.png"]
    assert "not a regular file" in reasons["viral"]
    assert "cannot be used" in reasons["viral/person2_virus_1.png"]
    assert len(found.errors) == 8
    assert found.manifest is not None
    assert len(found.manifest) == 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no column 'path'"),
        (b"file,label\n", "no column 'path'"),
        (b"path,class\n", "no column 'label'"),
        (b"\xff\xfe", "not a CSV in UTF-8"),
        (b'path,label\n"' + b"a" * 200_000, "field larger"),
    ],
)
def test_files_that_are_no_such_csv(tmp_path: Path, data: bytes, reason: str) -> None:
    file = tmp_path / "list.csv"
    file.write_bytes(data)
    with pytest.raises(InvalidInput, match=reason):
        scan_csv(file)


def test_a_csv_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"gone\.csv cannot be read"):
        scan_csv(tmp_path / "gone.csv")


def test_validate_yields_one_answer_a_file(folder: Path) -> None:
    (folder / "viral" / "person1_virus_1.png").write_bytes(b"")
    found = list(validate(scan_folder(folder)))
    assert len(found) == 6
    assert sum(isinstance(one, Sound) for one in found) == 5
