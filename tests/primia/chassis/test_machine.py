"""Limits of the machine and of a container."""

import os

import pytest

from primia.chassis import machine


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("300000 100000", 3),
        ("150000 100000", 1),
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("", 8),
        ("nonsense", 8),
        (None, 8),
    ],
)
def test_cores_are_those_of_the_container(monkeypatch, tmp_path, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert machine.cores(tmp_path) == cores


def test_without_an_affinity_all_processors_count(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores(tmp_path) == 1


def test_memory_is_that_of_the_container(tmp_path):
    whole = machine.memory_bytes(tmp_path)
    assert whole > 1 << 28
    for text, expected in (("max", whole), (str(1 << 28), 1 << 28), (str(1 << 62), whole)):
        (tmp_path / "memory.max").write_text(text + "\n")
        assert machine.memory_bytes(tmp_path) == expected
