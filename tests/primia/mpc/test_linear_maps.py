"""Sessions whose linear layers are computed as on a GPU are the same to the bit."""

import functools
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch

from primia.mpc.linear_maps import linear_map, linear_map64
from primia.mpc.securenn.ring64 import LinearMap64
from primia.prg import Seed
from primia.ring import LinearMap
from primia.ring_gpu import GpuMap
from tests.primia.mpc.test_vectors import fresh, frozen, messages
from tests.support.inference import Builder, Session, signed, weights_for
from tests.support.securenn import Session as SecureNNSession


@pytest.fixture(params=["cpu", "cuda"])
def on_device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return functools.partial(GpuMap, device=request.param)


def plan_of_every_layer(result="scores"):
    b = Builder((2, 11, 9))
    x = b.relu(b.max_pool(b.conv(0, 4, 3, 1, 1), 3, 2, 1))
    y = b.conv(b.relu(b.conv(x, 4, 3, 1, 1, 2)), 4)
    x = b.relu(b.add(y, x, 0, b.weight_bits))
    b.head(b.relu(b.add(b.conv(x, 8, 3, 2), b.conv(x, 8, 1, 2, 0))), 5)
    return b.plan(6, result)


def images(plan, batch):
    return signed(7, (batch, *plan.input_shape), plan.activation_bits + 2) / 2**6


def test_frozen_messages_come_out_the_same(on_device):
    session = fresh()
    session = Session(session.plan, session.weights, 2, linear_map=on_device)
    for name, data in messages(session).items():
        assert data == frozen(name), name


@pytest.mark.parametrize("result", ["scores", "label"])
def test_a_session_is_the_same_to_the_bit(on_device, result):
    plan = plan_of_every_layer(result)
    weights, pixels = weights_for(plan, 40), images(plan, 3)
    expected = Session(plan, weights, 3)
    found = Session(plan, weights, 3, linear_map=on_device)
    np.testing.assert_array_equal(found.run(pixels), expected.run(pixels))
    assert found.deal == expected.deal
    assert found.offline == expected.offline
    assert found.requests == expected.requests
    assert found.responses == expected.responses


def test_a_session_of_securenn_is_the_same_to_the_bit(on_device, monkeypatch):
    plan = plan_of_every_layer()
    weights, pixels = weights_for(plan, 40), images(plan, 2)

    def run(make_map):
        numbers = itertools.count()
        given = lambda: Seed(next(numbers).to_bytes(16, "little"))  # noqa: E731
        monkeypatch.setattr(Seed, "fresh", given)
        session = SecureNNSession(plan, weights, 2, linear_map=make_map)
        scores = session.run(pixels)
        heard = [message.tobytes() for pipe in session.grid.pipes.values() for message in pipe.log]
        return scores.tolist(), heard

    assert run(functools.partial(on_device, bits=64)) == run(LinearMap64)


@pytest.mark.parametrize("name", ["auto", "numpy", "native"])
def test_other_kernels_leave_linear_layers_to_the_processor(name):
    assert linear_map(name) is LinearMap
    assert linear_map64(name) is LinearMap64


def test_the_gpu_kernel_computes_them_on_the_gpu():
    assert linear_map("gpu") is GpuMap
    assert linear_map64("gpu").func is GpuMap
    assert linear_map64("gpu").keywords == {"bits": 64}


def test_torch_is_loaded_for_the_gpu_alone():
    code = (
        "import sys\n"
        "from primia.mpc.linear_maps import linear_map, linear_map64\n"
        "linear_map('auto'), linear_map64('auto')\n"
        "assert 'torch' not in sys.modules\n"
        "linear_map('gpu')\n"
        "assert 'torch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
