"""Every optimiser and every schedule on offer, as it is when nothing else is said: it learns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch

from primia.learning.config import Schedule, TrainingConfig
from primia.learning.hyperparameters import DEFAULTS, OptimiserName
from primia.learning.memory import moments
from primia.learning.models import create_model
from primia.learning.optimisers import create_optimiser, optimiser_tensors
from primia.learning.schedules import Span
from primia.learning.spec import ModelSpec
from primia.learning.training import ImageData, evaluate, train_locally
from primia.messages.rounds import TrainingSettings

NAMES = get_args(OptimiserName)
SCHEDULES = get_args(Schedule.model_fields["kind"].annotation)
SPEC = ModelSpec(architecture="small_cnn", classes=("dark", "light"), image_size=16)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Steps this small cost more to share out than to compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _images(count: int = 64) -> ImageData:
    """Noise, brighter for class 1 but overlapping: the loss has a way to go."""
    draws = np.random.default_rng(3)
    labels = np.arange(count, dtype=np.int64) % 2
    pixels = draws.integers(0, 170, (count, *SPEC.input_shape)) + 40 * labels[:, None, None, None]
    return ImageData.of(pixels.astype(np.uint8), labels, SPEC)


def _losses(options: dict[str, object], rounds: int) -> list[float]:
    """Before and after each round, of the images trained on."""
    data, module = _images(), create_model(SPEC)
    config = TrainingConfig.parse({"batch_size": 8, **options})
    found = [evaluate(module, data).loss]
    for number in range(rounds):
        train_locally(module, data, config, number, span=Span.of_round(number, rounds))
        found.append(evaluate(module, data).loss)
    return found


def test_the_optimisers_on_offer_all_have_defaults() -> None:
    assert set(DEFAULTS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_optimiser_learns_with_its_defaults(name: str) -> None:
    """Rounds that reset the moments, as runs do."""
    losses = _losses({"optimiser": name, "epochs": 2}, rounds=3)
    assert losses[-1] < 0.6 * losses[0]


def test_federated_sgd_learns_with_its_default_rate() -> None:
    losses = _losses({"algorithm": "fedsgd"}, rounds=12)
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("more", [{}, {"warm_up": 0.2, "restarts": 1}])
def test_every_schedule_learns(name: str, kind: str, more: dict[str, object]) -> None:
    options = {"optimiser": name, "epochs": 2, "schedule": {"kind": kind, **more}}
    losses = _losses(options, rounds=3)
    assert losses[-1] < 0.8 * losses[0]


def _group(**options: object) -> dict[str, object]:
    """Of the optimiser that a configuration makes, but for its rate."""
    made = create_optimiser(torch.nn.Linear(2, 1), TrainingConfig.parse(options))
    group = made.param_groups[0]
    return {key: value for key, value in group.items() if key not in ("params", "lr")}


@pytest.mark.parametrize("name", NAMES)
def test_the_coefficients_are_those_of_torch(name: str) -> None:
    found = _group(optimiser=name)
    kind = type(create_optimiser(torch.nn.Linear(2, 1), TrainingConfig.parse({"optimiser": name})))
    assert kind.__name__.lower() == name
    usual = kind(torch.nn.Linear(2, 1).parameters()).param_groups[0]
    if name == "sgd":  # plain in torch
        assert (found.pop("momentum"), usual["momentum"]) == (0.9, 0)
    assert found == {key: usual[key] for key in found}


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("sgd", {"momentum": 0.5}),
        ("rmsprop", {"momentum": 0.5, "alpha": 0.7}),
        ("adagrad", {}),
        ("adadelta", {"rho": 0.7}),
        *((name, {"betas": (0.5, 0.7)}) for name in ("adam", "adamw", "nadam", "radam", "adamax")),
    ],
)
def test_what_is_given_counts_where_the_optimiser_has_it(
    name: str, known: dict[str, object]
) -> None:
    given = _group(optimiser=name, momentum=0.5, second_moment=0.7, weight_decay=0.25)
    assert given == {**_group(optimiser=name), **known, "weight_decay": 0.25}


def test_federated_sgd_is_plain_whatever_the_optimiser() -> None:
    plain = _group(algorithm="fedsgd", optimiser="adam", momentum=0.5, second_moment=0.5)
    assert plain["momentum"] == 0
    assert plain == _group(algorithm="fedsgd", optimiser="sgd")


def test_a_proposal_says_what_a_request_leaves_out() -> None:
    asked = TrainingSettings.parse({"optimiser": "rmsprop", "second_moment": 0.9})
    said = asked.resolved()
    assert (said.learning_rate, said.momentum, said.second_moment) == (3e-4, 0, 0.9)
    assert TrainingSettings.parse(said.model_dump_json()) == said
    assert said.hyperparameters == asked.hyperparameters
    assert said.resolved() == said
    # a search may vary the optimiser of one request
    assert asked.model_copy(update={"optimiser": "sgd"}).resolved().second_moment is None


@pytest.mark.parametrize(
    ("name", "more"),
    [
        *product(NAMES, [{}, {"momentum": 0.5}, {"momentum": 0}]),
        *product(("adam", "adamw"), [{"amsgrad": True}]),
    ],
)
def test_the_moments_are_counted_for_the_memory(name: str, more: dict[str, object]) -> None:
    config = TrainingConfig.parse({"optimiser": name, **more})
    module = torch.nn.Linear(5, 3)
    optimiser = create_optimiser(module, config)
    for _ in range(2):
        optimiser.zero_grad()
        module(torch.ones(1, 5)).sum().backward()
        optimiser.step()
    sizes = [each.numel() for each in optimiser_tensors(optimiser).values()]
    held = sum(size for size in sizes if size > 1)  # counters are no moments
    assert held == moments(config) * (15 + 3)
