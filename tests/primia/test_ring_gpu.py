"""Linear maps by float64 matrices: on torch's device ``cpu``, and on a GPU if there is one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from primia import ring_gpu
from primia.errors import InvalidInput, Unavailable
from primia.prg import Seed, Stream
from primia.ring import EXACT, Window
from primia.ring_gpu import GpuMap
from tests.primia.test_ring import convolve_plainly

MIB = 1 << 20


@pytest.fixture(params=["cpu", "cuda"], scope="module")
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return request.param


def words(number, shape, bits=32):
    out = np.empty(shape, dtype=f"<u{bits // 8}")
    Stream(Seed(number.to_bytes(16, "little")), "gpu").fill(out.reshape(-1).view(np.uint8))
    return out


def weights(number, shape, bits, kept):
    """Signed integers of ``kept`` bits, as elements of the ring."""
    full = words(number, shape, bits)
    return (full.view(f"i{bits // 8}") >> (bits - kept)).view(full.dtype)


def in_the_ring(x, weight, window):
    """Direct convolution in wrapping arithmetic."""
    if x.dtype == np.uint32:
        return convolve_plainly(x, weight, window)
    (pad_h, pad_w), (step_h, step_w) = window.padding, window.stride
    x = np.pad(x, ((0, 0), (0, 0), (pad_h, pad_h), (pad_w, pad_w)))
    seen = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))
    seen = seen[:, :, ::step_h, ::step_w]
    pairs = zip(np.split(seen, window.groups, 1), np.split(weight, window.groups), strict=True)
    return np.concatenate([np.einsum("nchwij,ocij->nohw", v, w) for v, w in pairs], 1)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    bits=st.sampled_from([32, 64]),
    kept=st.sampled_from([1, 12, 17, 32, 64]),
    groups=st.sampled_from([1, 2, 3]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    batch=st.integers(0, 3),
    channels=st.integers(1, 40),
    piece=st.sampled_from([1, 20_000, 200_000, 256 * MIB]),
)
def test_convolutions_are_exact_in_pieces_of_any_size(
    device, seed, bits, kept, groups, kernel, stride, padding, batch, channels, piece
):
    x = words(seed, (batch, channels * groups, 6, 5), bits)
    weight = weights(seed + 1, (2 * groups, channels, *kernel), bits, min(kept, bits))
    window = Window(stride, padding, groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring_gpu, "_PIECE_BYTES", piece)
        found = GpuMap(weight, window, bits=bits, device=device)(x)
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(found, in_the_ring(x, weight, window))


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("kept", [1, 16, 24, 32])
@pytest.mark.parametrize(("batch", "terms", "outputs"), [(1, 1, 1), (3, 5000, 7), (1, 4609, 1)])
def test_dense_layers_are_exact(device, bits, kept, batch, terms, outputs):
    x = words(1, (batch, terms), bits)
    x.flags.writeable = False  # as a message that was received
    weight = weights(2, (outputs, terms), bits, kept)
    linear = GpuMap(weight, bits=bits, device=device)
    for _ in range(2):  # a map is used again and again
        np.testing.assert_array_equal(linear(x), x @ weight.T)


@pytest.mark.parametrize(
    ("bits", "extremes"),
    [
        (32, [0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF8000, 0x80000000, 0x80008000, 0xFFFFFFFF]),
        (64, [0, 1, 2**21, 2**21 - 1, 2**42, 2**43 - 2**21, 2**63, 2**63 - 2**42, 2**64 - 1]),
    ],
)
def test_the_largest_limbs_stay_exact(device, bits, extremes):
    """All pairs, over more terms than are summed at a time over Z_2^64."""
    values = np.array(extremes, dtype=f"u{bits // 8}")
    weight = np.repeat(values[:, None], 4100, axis=1)
    found = GpuMap(weight, bits=bits, device=device)(weight)
    np.testing.assert_array_equal(found, weight @ weight.T)


@pytest.mark.parametrize("bits", [32, 64])
def test_a_weight_is_narrow_as_long_as_its_sums_are_exact(device, bits):
    terms, limb = 2048, 1 << (15 if bits == 32 else 21)
    bound = EXACT // (terms * limb)
    x = np.full((1, terms), sum(limb << s for s in ((0, 16) if bits == 32 else (21, 42))))
    x = x.astype(f"u{bits // 8}")
    for largest, count in ((bound, 1), (bound + 1, len(ring_gpu._WIDTHS[bits]))):
        if largest < 2**31:
            weight = np.full((1, terms), -largest, dtype=np.int32)
            linear = GpuMap(weight, bits=bits, device=device)
            assert len(linear._weights) == count
            assert int(linear(x)[0, 0]) == terms * -largest * int(x[0, 0]) % 2**bits


def test_weights_of_32_bits_over_64(device):
    x, weight = words(3, (2, 3, 4, 4), 64), words(4, (4, 3, 3, 3)).view(np.int32)
    wide = weight.astype(np.int64).view(np.uint64)
    found = GpuMap(weight, Window(), bits=64, device=device)(x)
    np.testing.assert_array_equal(found, in_the_ring(x, wide, Window()))


def most_held(work, device):
    """Bytes of the device's memory that the work takes at a time."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    watched = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=watched, profile_memory=True) as profile:
        work()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(
    ("shape", "weight", "window"),
    [
        ((2, 8, 100, 100), (8, 8, 3, 3), Window((1, 1), (1, 1))),
        ((20, 16, 20, 20), (4, 16, 5, 5), Window((2, 2), (2, 2))),
        ((2, 32, 60, 60), (32, 1, 3, 3), Window((1, 1), (1, 1), 32)),
        ((3, 3, 60, 150), (48, 3, 1, 1), Window((3, 1))),
    ],
    ids=["large images", "many images", "depthwise", "outputs"],
)
def test_pieces_keep_to_their_memory(device, monkeypatch, bits, shape, weight, window):
    monkeypatch.setattr(ring_gpu, "_PIECE_BYTES", MIB)
    x = words(5, shape, bits)
    linear = GpuMap(words(6, weight, bits), window, bits=bits, device=device)
    linear(x[:1])  # cuBLAS takes its own once
    held = most_held(lambda: linear(x), device)
    assert MIB // 3 < held <= MIB


@pytest.mark.parametrize(
    ("weight", "window", "bits"),
    [
        (np.zeros((2, 2), np.float32), None, 32),
        (np.zeros((2, 2), np.uint64), None, 32),
        (np.zeros((2, 2), np.uint32), None, 64),
        (np.zeros((2, 2), np.int32), Window(), 32),
        (np.zeros((2, 2, 1, 1), np.int32), None, 32),
    ],
)
def test_other_weights_are_refused(weight, window, bits):
    with pytest.raises(InvalidInput, match="weight"):
        GpuMap(weight, window, bits=bits, device="cpu")


def test_a_device_whose_products_are_not_exact_is_refused(monkeypatch):
    exact = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: exact(a.float(), b.float()).double())
    ring_gpu._exact.cache_clear()
    with pytest.raises(Unavailable, match="not exact"):
        GpuMap(np.ones((1, 1), np.int32), device="cpu")
    ring_gpu._exact.cache_clear()


def test_a_map_prints_no_weight():
    linear = GpuMap(np.full((1, 2), 77, dtype=np.int32), device="cpu")
    assert repr(linear) == "GpuMap(<(1, 2)>)"
