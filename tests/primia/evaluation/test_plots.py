import io

import numpy as np
from PIL import Image

from primia.evaluation import plots

LINES = {"a": [(0.0, 0.2), (1.0, 0.9)], "none": []}


def _pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("L"))


def test_every_plot_is_a_picture_that_depends_on_its_values() -> None:
    other = {"a": [(0.0, 0.9), (1.0, 0.1)]}
    pairs = [
        (plots.curves(LINES, "x", "y"), plots.curves(other, "x", "y")),
        (plots.diagonal(LINES, "x", "y"), plots.diagonal(other, "x", "y")),
        (
            plots.matrix([[1, None]], ["r"], ["a", "b"], "y", "x"),
            plots.matrix([[2, None]], ["r"], ["a", "b"], "y", "x"),
        ),
        (
            plots.pictures({"true": [np.eye(8)], "found": [np.eye(8), np.zeros((8, 8))]}),
            plots.pictures({"true": [np.eye(8)], "found": [np.eye(8), np.ones((8, 8))]}),
        ),
        (plots.bars({"a": 1, "b": 2}, "x"), plots.bars({"a": 2, "b": 1}, "x")),
    ]
    for first, second in pairs:
        assert _pixels(first).std() > 5
        assert first != second


def test_nothing_to_plot_is_an_empty_picture() -> None:
    for png in (plots.curves({"a": []}, "x", "y"), plots.bars({}, "x"), plots.pictures({})):
        assert _pixels(png).size


def test_names_are_drawn_as_they_are() -> None:
    """A class may be called what would be a broken formula."""
    name = "$\\frac{$"
    assert plots.matrix([[1, 2], [3, 4]], [name, "b"], [name, "b"], "down", "across")
    assert plots.diagonal({name: [(0, 0), (1, 1)]}, "across", "up")
    assert plots.bars({name: 1.0}, "across")
