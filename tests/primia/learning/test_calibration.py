"""Probes for measuring models, and the strict reading of the images that a user gives instead."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primia.errors import InvalidInput
from primia.learning.calibration import MAX_IMAGES, pack, probe_pixels, probes, unpack
from primia.learning.spec import ModelSpec


@pytest.mark.parametrize(("channels", "side"), [(1, 16), (3, 33)])
def test_probes_use_the_whole_range_and_are_always_the_same(channels, side):
    found = probe_pixels(channels, side)
    assert found.dtype == np.uint8
    assert found.shape[1:] == (channels, side, side)
    assert len(found) <= MAX_IMAGES
    assert (found.min(), found.max()) == (0, 255)
    assert len({each.tobytes() for each in found}) == len(found)
    np.testing.assert_array_equal(found, probe_pixels(channels, side))
    if channels == 3:
        coloured = [each for each in found if not (each[0] == each[1]).all()]
        assert len(coloured) >= 4


def test_probes_are_normalised_as_the_model_takes_them():
    spec = ModelSpec(architecture="lenet", classes=("a", "b"), image_size=16)
    found = probes(spec)
    assert found.dtype == np.float32
    assert (found.min(), found.max()) == (-2, 2)


def test_pixels_survive_their_file():
    pixels = probe_pixels(3, 16)
    np.testing.assert_array_equal(unpack(pack(pixels), (3, 16, 16)), pixels)


def test_too_many_images():
    many = np.zeros((MAX_IMAGES + 1, 1, 16, 16), np.uint8)
    with pytest.raises(InvalidInput, match="64"):
        unpack(pack(many), (1, 16, 16))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400))
def test_damaged_files_are_refused_or_still_pixels(junk, at):
    whole = pack(probe_pixels(1, 16)[:1])
    for data in (junk, whole[:at] + junk + whole[at + len(junk) :]):
        try:
            found = unpack(data, (1, 16, 16))
        except InvalidInput:
            continue
        assert found.shape[1:] == (1, 16, 16)
