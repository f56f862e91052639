"""Frozen comparison keys: the format and the tree must not change by accident.

`python -m tests.primia.fss.test_dcf_vectors` writes the vectors anew, after a change on purpose.
"""

from pathlib import Path

import numpy as np
import pytest

from primia.fss.evaluation import NumpyEvaluator
from primia.fss.generation import NumpyGenerator
from primia.fss.geometry import KeyShape
from primia.fss.kernel import KeyBlock
from primia.prg import Seed, Stream

VECTORS = Path(__file__).parent / "vectors"
DOMAINS = (5, 9, 18)
COUNT = 11


def inputs(bits):
    stream = Stream(Seed(bytes(range(16))), f"vector {bits}")
    roots = [stream.words(4 * COUNT).view(np.uint64).reshape(COUNT, 2) for _ in range(2)]
    return stream.words(COUNT, bits), stream.words(COUNT, bits), stream.bits(COUNT), roots


def generated(bits):
    shape = KeyShape(bits)
    alpha, _, constant, roots = inputs(bits)
    data = np.zeros(shape.block_bytes(COUNT), dtype=np.uint8)
    NumpyGenerator().generate(
        shape, alpha, constant, (roots[0], roots[1]), KeyBlock.view(shape, COUNT, data)
    )
    return data


def shares(bits, data):
    shape = KeyShape(bits)
    _, x, _, roots = inputs(bits)
    block = KeyBlock.view(shape, COUNT, np.asarray(data))
    kernel = NumpyEvaluator()
    return [kernel.evaluate(shape, party, x, roots[party], block) for party in (0, 1)]


def frozen(bits):
    """The key block, then P0's shares and P1's, a byte each."""
    data = np.frombuffer((VECTORS / f"dcf{bits}.bin").read_bytes(), dtype=np.uint8)
    size = KeyShape(bits).block_bytes(COUNT)
    return data[:size], data[size : size + COUNT], data[size + COUNT :]


@pytest.mark.parametrize("bits", DOMAINS)
def test_generation_and_evaluation_are_as_frozen(bits):
    key, first, second = frozen(bits)
    assert generated(bits).tobytes() == key.tobytes()
    found = shares(bits, key)
    assert found[0].tolist() == first.tolist()
    assert found[1].tolist() == second.tolist()
    alpha, x, constant, _ = inputs(bits)
    assert (first ^ second).tolist() == ((x < alpha) ^ constant).tolist()


@pytest.mark.parametrize("bits", DOMAINS)
def test_a_bad_key_opens_to_something_else(bits):
    """One bit flipped in every leaf at the position of x turns exactly the answers over."""
    key = np.array(frozen(bits)[0])
    shape = KeyShape(bits)
    alpha, x, constant, _ = inputs(bits)
    leaves = KeyBlock.view(shape, COUNT, key).leaves
    low = x.astype(np.uint64) & np.uint64((1 << shape.leaf_bits) - 1)
    leaves[np.arange(COUNT), (low // 64).astype(int)] ^= np.uint64(1) << (low % np.uint64(64))
    found = shares(bits, key)
    flipped = (found[0] ^ found[1]) != ((x < alpha) ^ constant)
    on_path = (x >> np.uint32(shape.leaf_bits)) == (alpha >> np.uint32(shape.leaf_bits))
    assert flipped.tolist() == on_path.tolist(), "a leaf only counts on alpha's path"
    if bits == 5:
        assert flipped.all()


if __name__ == "__main__":
    VECTORS.mkdir(exist_ok=True)
    for domain in DOMAINS:
        vector = generated(domain)
        both = shares(domain, vector)
        parts = [vector.tobytes(), both[0].tobytes(), both[1].tobytes()]
        (VECTORS / f"dcf{domain}.bin").write_bytes(b"".join(parts))
