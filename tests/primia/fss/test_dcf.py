import numpy as np
import pytest

from primia.errors import MalformedMessage
from primia.fss.evaluation import NumpyEvaluator
from primia.fss.generation import NumpyGenerator
from primia.fss.geometry import BLOCK, KeyShape, blocks
from primia.fss.kernel import KeyBlock
from primia.prg import Seed, Stream


def roots(number, count):
    stream = Stream(Seed(number.to_bytes(16, "little")), "roots")
    return stream.words(4 * count).view(np.uint64).reshape(count, 2)


def keys(shape, alpha, constant):
    data = np.zeros(shape.block_bytes(len(alpha)), dtype=np.uint8)
    block = KeyBlock.view(shape, len(alpha), data)
    both = (roots(1, len(alpha)), roots(2, len(alpha)))
    NumpyGenerator().generate(shape, alpha, constant, both, block)
    return data, both


def share(shape, party, x, both, data):
    block = KeyBlock.view(shape, len(x), data)
    return NumpyEvaluator().evaluate(shape, party, x, both[party], block)


def opened(shape, x, both, data):
    return share(shape, 0, x, both, data) ^ share(shape, 1, x, both, data)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("constant", [0, 1])
def test_every_alpha_against_every_x(bits, constant):
    shape, size = KeyShape(bits), 1 << bits
    alpha, x = np.divmod(np.arange(size * size, dtype=np.uint32), np.uint32(size))
    constants = np.full(len(alpha), constant, dtype=np.uint8)
    data, both = keys(shape, alpha, constants)
    expected = (x < alpha).astype(np.uint8) ^ constants
    np.testing.assert_array_equal(opened(shape, x, both, data), expected)


@pytest.mark.parametrize("bits", [9, 10])
def test_one_key_answers_for_every_x(bits):
    shape, size = KeyShape(bits), 1 << bits
    for alpha in (0, 1, 127, 128, 129, size // 2 - 1, size // 2, size - 2, size - 1):
        data, both = keys(shape, np.array([alpha], np.uint32), np.zeros(1, np.uint8))
        answers = [
            opened(shape, np.array([x], np.uint32), both, data)[0] for x in range(0, size, 7)
        ]
        assert answers == [int(x < alpha) for x in range(0, size, 7)]


@pytest.mark.parametrize("bits", [11, 17, 21, 24, 31])
def test_samples_and_borders_of_large_domains(bits):
    shape, count = KeyShape(bits), 1 << 14
    stream = Stream(Seed(bytes(16)), f"samples {bits}")
    alpha, x = stream.words(count, bits), stream.words(count, bits)
    top = np.uint32((1 << bits) - 1)
    x[:2048] = alpha[:2048]
    x[2048:4096] = (alpha[2048:4096] + 1) & top
    x[4096:6144] = (alpha[4096:6144] - 1) & top
    alpha[6144:6200], x[6200:6300], alpha[6300:6400], x[6400:6500] = 0, 0, top, top
    near = slice(8000, 12000)  # decided by the last bits, after every possible shared prefix
    x[near] = alpha[near] ^ (np.uint32(1) << stream.words(4000, 5) % np.uint32(bits))
    constant = stream.bits(count)
    data, both = keys(shape, alpha, constant)
    expected = (x < alpha).astype(np.uint8) ^ constant
    np.testing.assert_array_equal(opened(shape, x, both, data), expected)


def test_a_full_block():
    shape = KeyShape(9)
    stream = Stream(Seed(bytes(16)), "full")
    alpha, x, constant = stream.words(BLOCK, 9), stream.words(BLOCK, 9), stream.bits(BLOCK)
    data, both = keys(shape, alpha, constant)
    np.testing.assert_array_equal(opened(shape, x, both, data), (x < alpha) ^ constant)


def test_a_kernel_keeps_nothing_between_blocks():
    shape = KeyShape(10)
    alpha, x = np.array([5, 700], np.uint32), np.array([6, 6], np.uint32)
    data, both = keys(shape, alpha, np.zeros(2, np.uint8))
    block = KeyBlock.view(shape, 2, data)
    kernel = NumpyEvaluator()
    first = kernel.evaluate(shape, 0, x, both[0], block)
    kernel.evaluate(shape, 1, x, both[1], block)
    again = kernel.evaluate(shape, 0, x, both[0], block)
    np.testing.assert_array_equal(first, again)


def test_shares_of_either_party_look_uniform():
    """A binomial share count of 2^16 fair bits: 6 sigma, false alarm below 1e-8 (seeds fixed)."""
    shape, count = KeyShape(12), 1 << 16
    for alpha in (0, 1, 4095):
        alphas, x = np.full(count, alpha, np.uint32), np.full(count, 77, np.uint32)
        data, both = keys(shape, alphas, np.zeros(count, np.uint8))
        for party in (0, 1):
            ones = int(share(shape, party, x, both, data).sum())
            assert abs(ones - count / 2) < 6 * (count / 4) ** 0.5


@pytest.mark.parametrize("alpha", [0, 1 << 11, (1 << 12) - 1])
def test_the_common_words_look_uniform_bit_by_bit(alpha):
    """Every bit of the correction words over 2^14 keys: 128 x 6 counts at 6 sigma."""
    shape, count = KeyShape(12), 1 << 14
    data, _ = keys(shape, np.full(count, alpha, np.uint32), np.zeros(count, np.uint8))
    block = KeyBlock.view(shape, count, data)
    words = np.concatenate([block.words, block.leaves[None]])  # (levels + 1, count, 2)
    bits = np.unpackbits(words.view(np.uint8).reshape(shape.levels + 1, count, 16), axis=2)
    ones = bits.sum(axis=1)  # (levels + 1, 128)
    assert np.abs(ones - count / 2).max() < 6 * (count / 4) ** 0.5
    extra = np.unpackbits(block.bits, axis=1).sum(axis=1)
    assert np.abs(extra - count / 2).max() < 6 * (count / 4) ** 0.5


def test_sizes():
    assert KeyShape(21).block_bytes(1000) == 15 * 16 * 1000 + 14 * 125 + 10
    assert KeyShape(5).block_bytes(3) == 48
    assert KeyShape(8).key_bytes(BLOCK + 8) == 2 * 16 * (BLOCK + 8) + BLOCK // 8 + 1 + 15
    assert list(blocks(BLOCK + 1)) == [(0, BLOCK), (BLOCK, BLOCK + 1)]
    assert list(blocks(0)) == []


@pytest.mark.parametrize("bits", [0, 32, -1])
def test_other_domains_are_refused(bits):
    with pytest.raises(ValueError, match="1 to 31"):
        KeyShape(bits)


def test_a_block_of_another_size_or_with_padding_is_refused():
    shape = KeyShape(9)
    size = shape.block_bytes(3)
    with pytest.raises(MalformedMessage, match="size"):
        KeyBlock.view(shape, 3, np.zeros(size - 1, np.uint8))
    with pytest.raises(MalformedMessage, match="size"):
        KeyBlock.view(shape, 4, np.zeros(size, np.uint8))
    padded = np.zeros(size, np.uint8)
    padded[-1] = 1
    with pytest.raises(MalformedMessage, match="padding"):
        KeyBlock.view(shape, 3, padded)
