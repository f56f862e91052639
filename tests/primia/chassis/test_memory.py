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
