"""A full disk under the owner's worker: the run says so, waits, and ends as it would have."""

from __future__ import annotations

import numpy as np
import pytest

from primia.chassis.files import Files
from primia.errors import StorageFull
from services.model_owner.registry import weights
from services.model_owner.rounds import opening
from tests.services.model_owner.federation import Federation
from tests.services.model_owner.rounds.test_owner_crashes import MODES, finished, start
from tests.services.model_owner.rounds.test_owner_runs_api import parsed, stream

POINTS = [(opening, "add_updates"), (opening, "write_model"), (weights, "copy")]
TIMES = 3


def full_at_first(monkeypatch, files: Files, owner, name: str) -> list[str]:
    """No space is free while the function runs, the first times that it is called."""
    original, calls = getattr(owner, name), []

    def on_a_full_disk(*args, **kwargs):
        reserve = files._min_free
        calls.append(name)
        if len(calls) <= TIMES:
            files._min_free = 1 << 60
        try:
            return original(*args, **kwargs)
        finally:
            files._min_free = reserve

    monkeypatch.setattr(owner, name, on_a_full_disk)
    return calls


def run_out_patiently(federation: Federation) -> int:
    """Let everybody work, the owner again where it had no space; how often it had none."""
    for refused in range(20):
        try:
            federation.run_out()
        except StorageFull:
            continue
        return refused
    raise AssertionError("it never goes on")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("owner", "name"), POINTS)
def test_a_run_waits_for_space_and_loses_nothing(federation, monkeypatch, mode, owner, name):
    monkeypatch.setattr(opening, "TOGETHER", 0)
    federation.with_model()
    wanted = finished(federation, start(federation, mode))
    run = start(federation, mode)
    calls = full_at_first(monkeypatch, federation.ctx.files, owner, name)
    assert run_out_patiently(federation) == TIMES
    assert len(calls) > TIMES
    told = [event for event in parsed(stream(federation, run)) if event["kind"] == "waiting"]
    assert len(told) == 1  # not once a try
    assert "are free beside the reserve" in told[0]["detail"]["reason"]
    np.testing.assert_array_equal(finished(federation, run), wanted)
