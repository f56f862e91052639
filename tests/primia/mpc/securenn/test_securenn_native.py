"""The machine code gives what NumPy gives, to the bit, for every size of block."""

import numpy as np
import pytest

from primia.mpc.securenn import field, native
from primia.mpc.securenn.compare import draw_blinds, masked_differences
from primia.prg import Stream
from tests.support.inference import seed

pytestmark = pytest.mark.skipif(not native.available(), reason="no machine code for this processor")


@pytest.fixture
def plain(monkeypatch):
    """Calls a function as on a machine without machine code."""

    def call(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(native, "available", lambda: False)
            return function(*arguments)

    return call


@pytest.mark.parametrize("base", [66, 67])
def test_every_word_is_split_alike(base):
    words = np.arange(base**2, dtype=np.uint16)
    native.split_digits(words, base)
    pairs = words.view(np.uint8).reshape(-1, 2)
    assert (pairs[:, 0] == np.arange(base**2) % base).all()
    assert (pairs[:, 1] == np.arange(base**2) // base).all()


@pytest.mark.parametrize("count", [1, 2, 31, 33, 1000])
def test_elements_are_drawn_alike(plain, count):
    for draw in (field.uniform, field.uniform_nonzero):
        found = draw(Stream(seed(1), "field"), count)
        assert (found == plain(draw, Stream(seed(1), "field"), count)).all()


@pytest.mark.parametrize("count", [1, 63, 64, 65, 129, 1000])
@pytest.mark.parametrize("width", [4, 64])
@pytest.mark.parametrize("party", [0, 1])
def test_differences_are_masked_alike(plain, party, width, count):
    x = field.uniform(Stream(seed(2), "x"), (width, count))
    r = Stream(seed(2), "r").words((count, 2)).view(np.uint64).ravel() >> np.uint64(64 - width)
    beta = Stream(seed(2), "beta").bits(count)

    def masked():
        (blind,) = draw_blinds(seed(3), "compare", [count], width)
        return masked_differences(party, x, r, beta, blind)

    assert (masked() == plain(masked)).all()
