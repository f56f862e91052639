"""Who can reach whom, on the real import graph: each module in a process of its own."""

import subprocess
import sys

import pytest

DEALER = "primia.mpc.dealer"
PARTY = "primia.mpc.party"
ONLINE = {"primia.mpc.gates", "primia.mpc.owner", "primia.mpc.client", "primia.fss.evaluation"}
OFFLINE = {DEALER, "primia.fss.generation"}
OUTSIDE = {
    *("fastapi", "sqlalchemy", "celery", "httpx", "asyncio", "logging", "torch"),
    *("primia.messages", "primia.chassis", "services"),
}


def loaded(module):
    code = f"import sys, {module}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return set(result.stdout.decode().split())


@pytest.fixture(scope="module")
def modules():
    return {module: loaded(module) for module in (DEALER, PARTY)}


def test_the_dealer_can_not_reach_the_parties(modules):
    assert not modules[DEALER] & {*ONLINE, PARTY, "primia.mpc.opening", "primia.mpc.frames"}


def test_the_parties_can_not_reach_the_dealer(modules):
    assert modules[PARTY] >= ONLINE
    assert not modules[PARTY] & OFFLINE


@pytest.mark.parametrize("module", [DEALER, PARTY])
def test_the_core_does_no_io_and_loads_no_framework(modules, module):
    assert not modules[module] & (OUTSIDE - baseline())


def baseline():
    """What numpy and cryptography bring along themselves."""
    return loaded("numpy, cryptography.hazmat.primitives.ciphers")
