"""Every model of the catalogue: encrypted it says what it says in plain, or it is refused."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from torch import nn

from primia.errors import UnsupportedModel
from primia.learning.calibration import probes
from primia.learning.models import create_model
from primia.learning.spec import ModelSpec, architectures
from primia.mpc.compile import compile_model
from primia.mpc.oracle import decode_scores, encode, evaluate
from tests.support.inference import Session
from tests.support.networks import float_scores, images, settle


def spec(architecture, size=32, channels=3, **changes):
    given = {"architecture": architecture, "classes": ["a", "b", "c"], "image_size": size}
    return ModelSpec.parse({**given, "channels": channels, **changes})


def module_of(given, settled):
    module = create_model(given).eval()
    return settle(module, given.input_shape, passes=2) if settled else module


def check_agreement(found, wanted, close):
    """Scores within this share of what the classes' scores spread by."""
    largest = np.abs(found - wanted).max()
    assert largest < close * np.ptp(wanted)
    apart = np.sort(wanted, axis=1)
    clear = apart[:, -1] - apart[:, -2] > 2 * largest  # else rounding may decide
    np.testing.assert_array_equal(found.argmax(1)[clear], wanted.argmax(1)[clear])


# Rounding grows from layer to layer, the more where a layer looks at a single pixel.
@pytest.mark.parametrize(
    ("architecture", "size", "channels", "close"),
    [("lenet", 28, 1, 0.01), ("lenet", 33, 3, 0.01), ("mobilenet", 32, 1, 0.1)],
)
def test_the_protocol_agrees_with_the_plain_model(architecture, size, channels, close):
    given = spec(architecture, size, channels)
    module = module_of(given, settled=architecture != "lenet")
    calibration = probes(given) if architecture == "lenet" else None
    model = compile_model(module, given.input_shape, calibration=calibration)
    batch = images(given.input_shape, 1, seed=3)
    assert model.plan.requests == documented()[architecture].requests
    session = Session(model.plan, model.weights)
    found = session.run(batch.astype(np.float32))
    check_agreement(found, float_scores(module, batch), close)


@pytest.mark.parametrize(
    ("architecture", "close"),
    [
        ("small_cnn", 0.01),
        ("resnet18", 0.05),
        ("resnet34", 0.1),
        ("resnet50", 0.1),
        ("vgg16_bn", 0.02),
        ("vgg16", 0.02),
    ],
)
def test_other_models_keep_their_scores_in_plain_integers(architecture, close):
    given = spec(architecture)
    module = module_of(given, settled=architecture != "vgg16")
    calibration = probes(given)[-3:] if architecture == "vgg16" else None
    model = compile_model(module, given.input_shape, calibration=calibration)
    assert model.plan.requests == documented()[architecture].requests
    batch = images(given.input_shape, 1, seed=3)
    found = evaluate(model, encode(model.plan, batch))
    assert max(found.peaks.values()) < 0.5
    check_agreement(decode_scores(model.plan, found.scores), float_scores(module, batch), close)


REFUSED = [
    (spec("densenet121"), r"'features\.denseblock1\.denselayer1\.cat' \(cat\)"),
    (spec("unet"), r"'(cat|up\.0)'"),
    (spec("resnet18", norm="group"), r"'bn1' \(GroupNorm\)"),
    (spec("small_cnn", norm="group"), r"'1' \(GroupNorm\)"),
]


@pytest.mark.parametrize(("given", "named"), REFUSED)
def test_what_is_refused_is_named(given, named):
    with pytest.raises(UnsupportedModel, match=named):
        compile_model(create_model(given).eval(), given.input_shape)


class Row(NamedTuple):
    """Of the documents' table."""

    sizes: str
    requests: int | None  # None: for training alone


@cache
def documented():
    """docs/models.md: architecture -> row."""
    rows = {}
    for line in Path("docs/models.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[0].startswith("`"):
            told = None if cells[4] == "training only" else int(cells[4])
            rows[cells[0].split("`")[1]] = Row(cells[2], told)
    return rows


def test_the_documents_table_is_the_catalogue():
    found = {name: (row.sizes.split(",")[0], row.requests) for name, row in documented().items()}
    assert {name: sizes for name, (sizes, _) in found.items()} == {
        each.name: f"{each.smallest_image} to {each.largest_image}" for each in architectures()
    }
    assert {name for name, (_, requests) in found.items() if requests} == {
        each.name for each in architectures() if each.encrypted
    }


@pytest.mark.parametrize("architecture", ["lenet", "small_cnn", "mobilenet"])
def test_requests_are_the_same_for_every_size(architecture):
    entry = next(each for each in architectures() if each.name == architecture)
    for size in (entry.smallest_image, entry.smallest_image + 37):
        given = spec(architecture, size)
        calibration = probes(given)[-3:] if architecture == "lenet" else None
        module = create_model(given).eval()
        plan = compile_model(module, given.input_shape, calibration=calibration).plan
        assert plan.requests == documented()[architecture].requests


@pytest.mark.parametrize(
    ("size", "taken"),
    [(32, True), (319, True), (320, False), (447, False), (448, True), (479, True), (480, False),
     (512, False)],
)  # fmt: skip
def test_the_sizes_at_which_the_pooling_of_vgg16_is_taken_up(size, taken):
    """It halves an image five times; the same with one channel instead of 512."""
    layers = [nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1), nn.ReLU()]
    layers += [nn.MaxPool2d(2, 2) for _ in range(5)]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d((7, 7)), nn.Flatten(), nn.Linear(49, 2))
    if taken:
        compile_model(module.eval(), (1, size, size))
    else:
        with pytest.raises(UnsupportedModel, match="resize the images"):
            compile_model(module.eval(), (1, size, size))


def test_the_catalogue_says_which_are_for_training_alone():
    assert {each.name for each in architectures() if not each.encrypted} == {
        "densenet121",
        "unet",
    }
