"""What the owner sees is what the sites' own code makes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from primia.errors import InvalidInput
from primia.evaluation.attacks.gradients import (
    Gradient,
    clipped_gradient,
    length,
    mean_gradient,
    weighted_gradient,
)
from primia.evaluation.attacks.inversion import Search, Shown, cosine_distance, invert
from primia.evaluation.attacks.labels import infer_label
from primia.learning.accounting import DpSgd
from primia.learning.models import create_model, flatten
from primia.learning.spec import ModelSpec
from primia.learning.synthetic import Anatomy, draw
from primia.learning.training import ImageData
from primia.prg import Seed
from primia.simulation import exposure
from primia.simulation.invertible import invertible

CLASSES = ("bacterial", "normal", "viral")
SMALL = ModelSpec(architecture="small_cnn", classes=CLASSES, image_size=32)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing by more, and threads wait for one another on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn(spec: ModelSpec, count: int, first: int = 0) -> ImageData:
    seed = Seed(bytes(16))
    labels = np.arange(first, first + count) % 3
    pixels = [
        draw(CLASSES[label], Anatomy.of(seed, str(first + k)), seed, k, 32)[None]
        for k, label in enumerate(labels)
    ]
    return ImageData.of(np.stack(pixels), labels, spec)


def unit(gradient: Gradient) -> Gradient:
    norm = length(gradient)
    return tuple((each / norm).detach() for each in gradient)


def apart(spec: ModelSpec, seen: exposure.Exposure, data: list[ImageData]) -> float:
    """Of the exposure's gradient and of what the attacker's model makes of the true images."""
    batches = [each.batch(np.arange(len(each)), torch.device("cpu")) for each in data]
    images, labels = (torch.cat(each) for each in zip(*batches, strict=True))
    sent = weighted_gradient(create_model(spec), seen.sizes)(images, labels)
    return float(cosine_distance(exposure.gradient(spec, seen), unit(sent)).abs())


@pytest.mark.parametrize("spec", [SMALL, invertible(CLASSES, 32)], ids=["small_cnn", "invertible"])
def test_updates_are_the_gradients_that_the_attacker_computes(spec: ModelSpec) -> None:
    weights = flatten(create_model(spec))
    sites = {f"site-{k}": drawn(spec, 2 + k, 3 * k) for k in range(3)}
    one = exposure.of_image(spec, weights, drawn(spec, 1))
    assert one.sizes == (1,)
    assert apart(spec, one, [drawn(spec, 1)]) < 1e-4
    site = exposure.of_site(spec, weights, sites["site-1"])
    assert apart(spec, site, [sites["site-1"]]) < 1e-4
    together = exposure.of_sum(spec, weights, sites)
    assert together.sizes == (2, 3, 4)
    assert together.images == 9
    assert apart(spec, together, list(sites.values())) < 1e-4
    assert apart(spec, together, [drawn(spec, 2, 5), *list(sites.values())[1:]]) > 1e-4


def test_differential_privacy_leaves_little_of_the_direction() -> None:
    spec = invertible(CLASSES, 32)
    weights, data = flatten(create_model(spec)), drawn(spec, 4)
    images, labels = data.batch(np.arange(4), torch.device("cpu"))
    sent = unit(clipped_gradient(create_model(spec), 1.0)(images, labels))
    faint = exposure.of_private_site(spec, weights, data, DpSgd(noise_multiplier=0.05))
    strong = exposure.of_private_site(spec, weights, data, DpSgd(epsilon=8))
    assert faint.clip_norm == 1.0
    near = float(cosine_distance(exposure.gradient(spec, faint), sent))
    far = float(cosine_distance(exposure.gradient(spec, strong), sent))
    assert near < far
    assert far > 0.8


def test_an_image_and_its_class_are_read_from_a_plain_update_and_not_with_privacy() -> None:
    spec = invertible(CLASSES, 32)
    module, data = create_model(spec), drawn(spec, 1, first=2)
    images, labels = data.batch(np.arange(1), torch.device("cpu"))
    known, search = Shown(labels, spec.input_shape, -2.0, 2.0), Search(80)

    seen = exposure.gradient(spec, exposure.of_image(spec, flatten(module), data))
    assert infer_label(seen[-1]) == 2
    found = invert(seen, mean_gradient(module), known, search).images
    other = drawn(spec, 1, first=5).batch(np.arange(1), torch.device("cpu"))[0]
    error = float((found - images).square().mean())
    assert error < float((other - images).square().mean()) / 5

    twice = ImageData(data.pixels.repeat(2, 0), data.labels.repeat(2), data.mean, data.std)
    private = exposure.of_private_site(spec, flatten(module), twice, DpSgd(epsilon=8))
    hidden = exposure.gradient(spec, private)
    sender = clipped_gradient(module, 1.0)
    nothing = invert(hidden, sender, known, search).images
    assert float((nothing - images).square().mean()) > 5 * error


def test_bad_input_is_refused() -> None:
    weights = flatten(create_model(SMALL))
    one, two = drawn(SMALL, 1), drawn(SMALL, 2)
    with pytest.raises(InvalidInput, match="One image"):
        exposure.of_image(SMALL, weights, two)
    with pytest.raises(InvalidInput, match="2 images"):
        exposure.of_site(SMALL, weights, one)
    with pytest.raises(InvalidInput, match="BatchNorm"):
        exposure.of_private_site(SMALL, weights, two, DpSgd(epsilon=8))
    with pytest.raises(InvalidInput, match="no change"):
        exposure.gradient(SMALL, exposure.Exposure(weights[:-1], (1,)))
    with pytest.raises(InvalidInput, match="channels"):
        invertible(CLASSES, 32, width=0)
