"""Memory that a process may take, by the system's word and by that of its control groups."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from primia.chassis.room import room

MIB = 1 << 20


def group(folder: Path, *, limit: str, used: int, cached: int, old: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("limit_in_bytes", "usage_in_bytes") if old else ("max", "current")
    (folder / f"memory.{names[0]}").write_text(f"{limit}\n")
    (folder / f"memory.{names[1]}").write_text(f"{used}\n")
    before = "total_" if old else ""
    rows = [f"anon {used}", f"{before}inactive_file {cached}", f"{before}active_file {MIB}"]
    (folder / "memory.stat").write_text("\n".join(rows))


def own(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "own"
    file.write_text(text)
    return file


@pytest.fixture(autouse=True)
def system(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 GiB available, and a process of 100 MiB."""
    memory = type("Memory", (), {"available": 64 << 30, "rss": 100 * MIB})()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _self: memory)


def test_without_groups_it_is_what_the_system_has_left(tmp_path: Path):
    assert room(tmp_path, tmp_path / "none") == (64 << 30) + 100 * MIB


def test_a_containers_limit_counts_less_what_others_use_and_its_cache_does_not(tmp_path: Path):
    mount = tmp_path / "mount"
    group(mount, limit=str(2048 * MIB), used=600 * MIB, cached=199 * MIB)
    found = room(mount, own(tmp_path, "0::/\n"))
    assert found == (2048 - 600 + 199 + 1 + 100) * MIB


def test_the_tightest_of_the_groups_above_a_process_counts(tmp_path: Path):
    mount = tmp_path / "mount"
    group(mount / "slice/unit", limit="max", used=0, cached=0)
    group(mount / "slice", limit=str(512 * MIB), used=256 * MIB, cached=0)
    group(mount, limit=str(4096 * MIB), used=0, cached=0)
    assert room(mount, own(tmp_path, "0::/slice/unit\n")) == (512 - 256 + 1 + 100) * MIB


def test_groups_of_the_first_version(tmp_path: Path):
    mount = tmp_path / "mount"
    group(mount / "memory", limit=str(1024 * MIB), used=24 * MIB, cached=0, old=True)
    text = "3:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n"  # outside of the container's view
    assert room(mount, own(tmp_path, text)) == (1024 - 24 + 1 + 100) * MIB


def test_a_group_that_is_full_leaves_what_the_process_has(tmp_path: Path):
    mount = tmp_path / "mount"
    group(mount, limit=str(MIB), used=9 * MIB, cached=0)
    assert room(mount, own(tmp_path, "0::/\n")) == 100 * MIB
