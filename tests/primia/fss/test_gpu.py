"""The GPU kernels in Triton's interpreter, through its compiler, and on a GPU if there is one."""

import os
import subprocess
import sys

import numpy as np
import pytest

from primia.fss.evaluation import NumpyEvaluator
from primia.fss.generation import NumpyGenerator
from tests.primia.fss.test_kernels import Case

pytest.importorskip("triton", reason="triton is not installed")

INTERPRETED = """
import numpy as np
from primia.fss.geometry import KeyShape
from primia.fss.gpu import GpuEvaluator, GpuGenerator
from primia.fss.kernel import KeyBlock
from tests.primia.fss.test_dcf_vectors import COUNT, frozen, inputs

for bits in (5, 9):
    key, *shares = frozen(bits)
    alpha, x, constant, roots = inputs(bits)
    shape, data = KeyShape(bits), np.zeros(len(key), dtype=np.uint8)
    block = KeyBlock.view(shape, COUNT, data)
    GpuGenerator("cpu").generate(shape, alpha, constant, tuple(roots), block)
    assert data.tobytes() == key.tobytes(), bits
    kept = KeyBlock.view(shape, COUNT, key)
    for party, share in enumerate(shares):
        found = GpuEvaluator("cpu").evaluate(shape, party, x, roots[party], kept)
        assert found.tolist() == share.tolist(), (bits, party)
"""

COMPILED = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from primia.fss import gpu_code

WORDS = ("x", "alpha", "roots", "roots0", "roots1", "words", "leaves", "table", "keys")
BYTES = ("constant", "bits", "extras", "result")
kinds = {**dict.fromkeys(WORDS, "*u32"), **dict.fromkeys(BYTES, "*u8"), "SIZE": "constexpr"}
for function in (gpu_code.evaluate, gpu_code.generate):
    signature = {name: kinds.get(name, "i32") for name in function.arg_names}
    made = compile(ASTSource(function, signature, {"SIZE": 128}), target=GPUTarget("cuda", 80, 32))
    assert made.asm["cubin"]
"""


def run(code, tmp_path, **environment):
    values = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=values, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_interpreter_gives_the_frozen_vectors(tmp_path):
    run(INTERPRETED, tmp_path, TRITON_INTERPRET="1")


def test_the_kernels_compile_for_a_gpu(tmp_path):
    run(COMPILED, tmp_path)


def has_gpu():
    from primia.fss import gpu

    return gpu.available()


@pytest.mark.parametrize("bits", [1, 7, 8, 18, 31])
def test_a_gpu_is_the_reference_to_the_bit(bits):
    if not has_gpu():
        pytest.skip("no GPU")
    from primia.fss.gpu import GpuEvaluator, GpuGenerator

    for count in (1, 129, 9001):
        case = Case(bits, count)
        data = case.keys(NumpyGenerator())
        assert case.keys(GpuGenerator()).tobytes() == data.tobytes()
        for party in (0, 1):
            expected = case.share(NumpyEvaluator(), party, data)
            np.testing.assert_array_equal(case.share(GpuEvaluator(), party, data), expected)
