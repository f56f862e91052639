"""Every kernel gives the reference's keys and shares, to the bit."""

import subprocess
import sys

import numpy as np
import pytest

from primia.errors import InvalidInput
from primia.fss import kernels, native
from primia.fss.evaluation import NumpyEvaluator
from primia.fss.generation import NumpyGenerator
from primia.fss.geometry import BLOCK, KeyShape
from primia.fss.kernel import KeyBlock
from primia.prg import Seed, Stream
from tests.primia.fss.test_dcf_vectors import COUNT, DOMAINS, frozen, inputs

WIDTHS = [width for width in (1, 2, 4) if width <= native.vector_words()]
needs_native = pytest.mark.skipif(not WIDTHS, reason="no AES instructions that we know")
# Around the width of a vector, a byte of bits, a chunk, and the least share of a thread.
COUNTS = (1, 3, 8, 13, native.CHUNK + 5, 9001)


def evaluator(width, threads=1):
    from primia.fss.native_evaluation import NativeEvaluator

    return NativeEvaluator(threads, width)


def generator(width, threads=1):
    from primia.fss.native_generation import NativeGenerator

    return NativeGenerator(threads, width)


class Case:
    """Numbers, roots and the reference's keys of one block."""

    def __init__(self, bits, count):
        self.shape, self.count = KeyShape(bits), count
        stream = Stream(Seed(bytes(16)), f"kernels {bits} {count}")
        self.alpha, self.x = stream.words(count, bits), stream.words(count, bits)
        self.x[::3] = self.alpha[::3]
        self.constant = stream.bits(count)
        self.roots = tuple(
            stream.words(4 * count).view(np.uint64).reshape(count, 2) for _ in (0, 1)
        )

    def keys(self, kernel):
        """The bytes of the block; what they held before must not matter."""
        data = np.zeros(self.shape.block_bytes(self.count), dtype=np.uint8)
        data[: len(data) - self.shape.padding(self.count)] = 0xA5
        data[len(data) - self.shape.padding(self.count) :] = 0
        block = KeyBlock.view(self.shape, self.count, data)
        kernel.generate(self.shape, self.alpha, self.constant, self.roots, block)
        return data

    def share(self, kernel, party, data):
        block = KeyBlock.view(self.shape, self.count, data)
        return kernel.evaluate(self.shape, party, self.x, self.roots[party], block)


@needs_native
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("bits", [1, 6, 7, 8, 9, 18, 31])
def test_native_is_the_reference_to_the_bit(bits, width):
    for count in COUNTS:
        case = Case(bits, count)
        data = case.keys(NumpyGenerator())
        assert case.keys(generator(width)).tobytes() == data.tobytes()
        for party in (0, 1):
            expected = case.share(NumpyEvaluator(), party, data)
            np.testing.assert_array_equal(case.share(evaluator(width), party, data), expected)


@needs_native
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("bits", DOMAINS)
def test_native_gives_the_frozen_vectors(bits, width):
    key, first, second = frozen(bits)
    alpha, x, constant, roots = inputs(bits)
    shape, data = KeyShape(bits), np.zeros(len(key), dtype=np.uint8)
    generator(width).generate(
        shape, alpha, constant, tuple(roots), KeyBlock.view(shape, COUNT, data)
    )
    assert data.tobytes() == key.tobytes()
    block = KeyBlock.view(shape, COUNT, key)  # read-only, as a mapped half
    for party, share in enumerate((first, second)):
        found = evaluator(width).evaluate(shape, party, x, roots[party], block)
        assert found.tolist() == share.tolist()


@needs_native
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_a_block(threads):
    case = Case(12, BLOCK - 3)
    data = case.keys(generator(WIDTHS[-1]))
    assert case.keys(generator(WIDTHS[-1], threads)).tobytes() == data.tobytes()
    shares = [case.share(evaluator(WIDTHS[-1], threads), party, data) for party in (0, 1)]
    expected = (case.x < case.alpha) ^ case.constant
    np.testing.assert_array_equal(shares[0] ^ shares[1], expected)


@needs_native
def test_threads_that_start_together_get_one_and_the_same_code():
    code = f"""
import threading
from tests.primia.fss.test_kernels import Case, evaluator, generator
from primia.fss.native import _engine
case, found = Case(9, 600), []
start = threading.Barrier(8)
def work():
    start.wait()
    data = case.keys(generator({WIDTHS[-1]}))
    found.append(case.share(evaluator({WIDTHS[-1]}), 0, data).tobytes())
threads = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in threads], [t.join() for t in threads]
assert len(found) == 8 and len(set(found)) == 1
assert _engine.cache_info().currsize == _engine.cache_info().misses
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_native
def test_keys_may_lie_at_any_address_and_numbers_be_slices():
    case = Case(11, 700)
    data = case.keys(NumpyGenerator())
    shifted = np.zeros(len(data) + 8, dtype=np.uint8)[8:]
    shifted[:] = data
    spread = np.repeat(case.x, 2)[::2]
    block = KeyBlock.view(case.shape, case.count, shifted)
    share = evaluator(WIDTHS[-1]).evaluate(case.shape, 1, spread, case.roots[1], block)
    np.testing.assert_array_equal(share, case.share(NumpyEvaluator(), 1, data))


@needs_native
def test_arrays_of_another_type_or_size_are_refused():
    case = Case(9, 16)
    data = case.keys(NumpyGenerator())
    block = KeyBlock.view(case.shape, case.count, data)
    kernel = evaluator(WIDTHS[-1])
    with pytest.raises(InvalidInput):
        kernel.evaluate(case.shape, 0, case.x.astype(np.uint64), case.roots[0], block)
    with pytest.raises(InvalidInput):
        kernel.evaluate(case.shape, 0, case.x, case.roots[0][:8], block)
    with pytest.raises(InvalidInput):
        kernel.evaluate(KeyShape(10), 0, case.x, case.roots[0], block)


def test_the_kernel_is_chosen_by_what_the_machine_can(monkeypatch):
    assert isinstance(kernels.evaluator("numpy"), NumpyEvaluator)
    assert isinstance(kernels.generator("numpy"), NumpyGenerator)
    for module in (kernels, native):
        monkeypatch.setattr(module, "vector_words", lambda: 0)
    assert kernels.resolve("auto") == "numpy"
    assert isinstance(kernels.evaluator(), NumpyEvaluator)
    assert isinstance(kernels.generator(), NumpyGenerator)
    with pytest.raises(InvalidInput, match="AES"):
        kernels.evaluator("native")


@needs_native
def test_auto_is_native_where_the_machine_can():
    assert kernels.resolve("auto") == "native"
    case = Case(20, 100)
    data = case.keys(kernels.generator())
    opened = case.share(kernels.evaluator(), 0, data) ^ case.share(kernels.evaluator(), 1, data)
    np.testing.assert_array_equal(opened, (case.x < case.alpha) ^ case.constant)
