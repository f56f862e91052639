"""Every model of the catalogue: encrypted it says what it says in plain, or it is refused."""

import numpy as np
import pytest

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
    session = Session(model.plan, model.weights)
    found = session.run(batch.astype(np.float32))
    check_agreement(found, float_scores(module, batch), close)


@pytest.mark.parametrize(
    ("architecture", "close"), [("resnet50", 0.1), ("vgg16_bn", 0.02), ("vgg16", 0.02)]
)
def test_large_models_keep_their_scores(architecture, close):
    given = spec(architecture)
    module = module_of(given, settled=architecture != "vgg16")
    calibration = probes(given)[-3:] if architecture == "vgg16" else None
    model = compile_model(module, given.input_shape, calibration=calibration)
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


def test_the_catalogue_says_which_are_for_training_alone():
    assert {each.name for each in architectures() if not each.encrypted} == {
        "densenet121",
        "unet",
    }
