"""Every role of an inference computes its linear layers with what the settings choose."""

from __future__ import annotations

import functools
import sys

import numpy as np
import pytest

from primia.learning.images import decode, normalise
from primia.mpc import linear_maps, oracle
from primia.ring_gpu import GpuMap
from tests.support.contexts import Cast
from tests.support.encrypted import CLASSES, SIZE, network, picture

IMAGE = picture(1)
KERNEL = "numpy"  # one that this machine has; the maps are a GPU's, on torch's device cpu
ROLES = {
    ("services.model_owner.inference.worker", 32, KERNEL),
    ("services.data_node.inference.served", 32, KERNEL),
    ("services.crypto_provider.material.tasks", 32, "auto"),
    ("services.model_owner.inference.streams", 64, KERNEL),
    ("services.data_node.inference.streamed", 64, KERNEL),
    ("services.crypto_provider.assistance.api", 64, "auto"),
}


@pytest.fixture
def asked(monkeypatch):
    """Who has asked for maps over which ring, by which setting."""
    found = set()

    def noted(bits, name):
        found.add((sys._getframe(1).f_globals["__name__"], bits, name))
        return functools.partial(GpuMap, bits=bits, device="cpu")

    monkeypatch.setattr(linear_maps, "linear_map", functools.partial(noted, 32))
    monkeypatch.setattr(linear_maps, "linear_map64", functools.partial(noted, 64))
    return found


def test_every_role_takes_the_maps_that_its_settings_choose(asked, tmp_path, broker_url):
    kernels = {"node_settings": {"kernel": KERNEL}, "kernel": KERNEL}
    with network(Cast(tmp_path), broker_url, **kernels) as grid:
        (serving,) = grid.serve()
        compiled = grid.compiled(serving["plan"])
        pixels = normalise(decode(IMAGE, SIZE, 1)[None], 0.5, 0.25)
        found = oracle.evaluate(compiled, oracle.encode(compiled.plan, pixels))
        wanted = oracle.decode_scores(compiled.plan, found.scores)[0]
        for protocol in ("fss", "securenn"):
            _, result = grid.classify(IMAGE, result="scores", protocol=protocol)
            scores = result["predictions"][0]["scores"]
            np.testing.assert_allclose([scores[name] for name in CLASSES], wanted, atol=0.01)
    assert asked == ROLES
