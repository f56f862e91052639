"""Freed memory goes back to the system, where the system can take it."""

from __future__ import annotations

import sys

import numpy as np
import psutil
import pytest

from primia.chassis import memory

PIECE, COUNT = 64 << 10, 3000  # below what malloc maps by itself; 190 MB


def test_freed_memory_is_given_back():
    if not memory.give_back():
        pytest.skip(f"no malloc_trim on {sys.platform}")
    process = psutil.Process()
    pieces = [np.ones(PIECE, np.uint8) for _ in range(COUNT)]
    kept = pieces[-1]  # the last one keeps the heap from shrinking by itself
    held = process.memory_info().rss
    del pieces
    assert memory.give_back()
    assert held - process.memory_info().rss > PIECE * COUNT / 2
    assert kept.all()


def test_a_system_without_it_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory, "_trim", lambda: None)
    assert memory.give_back() is False


def test_it_is_not_given_back_after_every_task(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(memory.time, "monotonic", lambda: now[0])
    memory._seldom.cache_clear()
    given = []
    monkeypatch.setattr(memory, "give_back", lambda: given.append(now[0]) or True)
    for second in (0, 10, 31, 40, 62):
        now[0] = float(second)
        memory.give_back_at_times()
    memory._seldom.cache_clear()
    assert given == [31.0, 62.0]
