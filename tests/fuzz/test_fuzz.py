"""Every fuzz target on mutations of sound inputs; ``make fuzz`` goes on for as long as wanted."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutation import mutated
from tests.fuzz.targets import attempt, targets

# A session has to be dealt and played for each of these inputs.
SLOW = {"step_endpoint", "client_step", "securenn_owner", "securenn_client", "securenn_assistant"}
SLOWEST = {"public_step", "owner_stream", "assistance_stream"}  # through whole applications
EXAMPLES = {**dict.fromkeys(SLOW, 25), **dict.fromkeys(SLOWEST, 10)}


@pytest.mark.parametrize("name", sorted(targets()))
def test_seeds_are_no_findings(name):
    for seed in targets()[name].seeds:
        attempt(targets()[name], seed)


FINDINGS = sorted((Path(__file__).parent / "findings").iterdir())


@pytest.mark.parametrize("file", FINDINGS, ids=lambda file: file.name)
def test_what_was_found_once_is_found_no_more(file):
    """Named TARGET.WHAT.bin."""
    attempt(targets()[file.name.partition(".")[0]], file.read_bytes())


@pytest.mark.parametrize("name", sorted(targets()))
def test_unsound_inputs_are_refused_within_bounds(name):
    target = targets()[name]

    @settings(
        max_examples=EXAMPLES.get(name, 150),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.data())
    def hammer(data):
        attempt(target, data.draw(mutated(target.seeds)))

    hammer()


def test_findings_are_found():
    """The harness itself: another exception, or memory beyond the bound."""
    from tests.fuzz.targets import MEMORY_BYTES, Target

    def wrong(_data):
        raise KeyError("not declared")

    with pytest.raises(KeyError):
        attempt(Target(wrong, ()), b"x")
    with pytest.raises(AssertionError, match="bytes of memory"):
        attempt(Target(lambda _data: bytearray(2 * MEMORY_BYTES), ()), b"x")
