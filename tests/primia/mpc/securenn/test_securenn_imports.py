"""Who can reach whom, on the real import graph: each module in a process of its own."""

import pytest

from tests.primia.mpc.test_imports import OUTSIDE, baseline, loaded

HERE = "primia.mpc.securenn"
ASSISTANT = f"{HERE}.assistant"
PARTIES = {f"{HERE}.{name}" for name in ("gates", "prepared", "walk", "roles")}


@pytest.fixture(scope="module")
def modules():
    names = (ASSISTANT, f"{HERE}.roles", "services.crypto_provider.main")
    return {module: loaded(module) for module in names}


def test_the_assistant_can_not_reach_the_parties(modules):
    assert not modules[ASSISTANT] & PARTIES
    assert not modules["services.crypto_provider.main"] & PARTIES


def test_the_parties_can_not_reach_the_assistant(modules):
    assert modules[f"{HERE}.roles"] >= PARTIES
    assert ASSISTANT not in modules[f"{HERE}.roles"]


@pytest.mark.parametrize("module", [ASSISTANT, f"{HERE}.roles"])
def test_the_protocol_does_no_io_and_loads_no_framework(modules, module):
    assert not modules[module] & (OUTSIDE - baseline())
