"""Whole plans through the three roles, against the same plan in plain integers."""

import numpy as np
import pytest

from primia.errors import InvalidInput, MalformedMessage
from primia.learning.vision import torchvision_models
from primia.mpc.compile import compile_model
from primia.mpc.securenn.assistant import Assistant
from primia.mpc.securenn.driver import carry
from primia.mpc.securenn.layout import steps
from primia.mpc.securenn.prepared import PreparedModel, PreparedOpening
from primia.mpc.securenn.ring64 import LinearMap64
from primia.mpc.securenn.roles import Client, Owner
from primia.mpc.securenn.wire import receive_odd
from primia.prg import Seed
from tests.support.inference import Builder, plain, signed, weights_for
from tests.support.networks import float_scores, residual, settle, small_cnn
from tests.support.networks import images as pictures
from tests.support.securenn import Session


def images(plan, batch, number=7):
    units = signed(number, (batch, *plan.input_shape), plan.activation_bits + 2)
    return units, units / 2**plan.activation_bits


def every_operation(result="scores"):
    b = Builder((2, 11, 9))
    x = b.relu(b.max_pool(b.conv(0, 4, 3, 1, 1), 3, 2, 1))
    y = b.conv(b.relu(b.conv(x, 4, 3, 1, 1, 2)), 4)
    x = b.relu(b.add(y, x, 0, b.weight_bits))
    y = b.conv(x, 8, 3, 2)
    x = b.relu(b.add(y, b.conv(x, 8, 1, 2, 0)))
    b.head(x, 5)
    return b.plan(6, result)


@pytest.mark.parametrize("batch", [1, 3])
def test_every_operation(batch):
    plan = every_operation()
    weights = weights_for(plan, 40)
    units, pixels = images(plan, batch)
    scores = Session(plan, weights, batch).run(pixels)
    expected = plain(plan, weights, units) / 2.0 ** plan.scales()[-1]
    # Share-wise truncation: a unit up, a ReLU.
    assert np.abs(scores - expected).max() < 0.02 * np.abs(expected).max()


def test_without_truncation_it_is_exact():
    b = Builder((1, 9, 9))
    b.head(b.relu(b.max_pool(b.conv(0, 3), 2, 2, 0), shift=0), 4)
    plan = b.plan(6)
    weights = weights_for(plan, 50)
    units, pixels = images(plan, 2)
    scores = Session(plan, weights, 2).run(pixels)
    assert (scores * 2.0 ** plan.scales()[-1] == plain(plan, weights, units)).all()


def test_labels_and_ties():
    b = Builder((3, 1, 1))
    b.head(b.relu(b.conv(0, 3, 1, 1, 0), shift=0), 9)
    plan = b.plan(6, "label")
    weights = weights_for(plan, 60)
    units, pixels = images(plan, 16)
    scores = plain(plan, weights, units)
    assert (Session(plan, weights, 16).run(pixels) == scores.argmax(1)).all()
    for given in weights.values():
        given.weight[:] = 0
        given.bias[:] = 0
    assert (Session(plan, weights, 16).run(pixels) == 0).all()


@pytest.mark.parametrize(
    ("make", "shape"), [(small_cnn, (1, 24, 24)), (residual, (3, 32, 32))], ids=["cnn", "residual"]
)
def test_a_compiled_model_agrees_with_its_module(make, shape):
    module = settle(make(shape[0]), shape)
    model = compile_model(module, shape)
    pixels = pictures(shape, 2, seed=7)
    scores = Session(model.plan, model.weights, 2).run(pixels)
    assert np.abs(scores - float_scores(module, pixels)).max() < 0.01


def test_a_resnet18_agrees_with_its_module_and_its_costs_are_known():
    """Rounds: 9 a nonlinear step, 1 a linear layer that reads a new value, 1 for the result."""
    shape = (3, 32, 32)
    module = settle(torchvision_models().resnet18(weights=None, num_classes=3), shape, passes=4)
    model = compile_model(module, shape)
    pixels = pictures(shape, 1, seed=7)
    session = Session(model.plan, model.weights, 1)
    assert np.abs(session.run(pixels) - float_scores(module, pixels)).max() < 0.01
    found = list(steps(model.plan, 1))
    assert len(found) == 21  # 17 ReLU, one pooling of four levels
    layers_deep = 18
    assert session.rounds == 21 * 9 + layers_deep + 1 == 208
    comparisons = sum(step.count for step in found)
    pooled = 64 * (16 + 8) * 15  # of two at a time: one less than a window has, 15 a line
    relus = sum(gate.count for gate in model.plan.gates() if gate.widen)
    assert comparisons == relus + pooled
    assert sum(session.online.values()) / comparisons == pytest.approx(529, rel=0.02)


def rounds(result="scores", kernel=None, classes=3):
    """Of a convolution, a ReLU, a pooling where there is a kernel, and a dense layer."""
    b = Builder((1, 11, 11))
    x = b.conv(0, 2)
    x = b.max_pool(x, kernel, 2, 0) if kernel else x
    b.head(b.relu(x, shift=0), classes)
    plan = b.plan(6, result)
    session = Session(plan, weights_for(plan, 50))
    session.run(images(plan, 1)[1])
    return session.rounds


@pytest.mark.parametrize(("kernel", "levels"), [(2, 1), (3, 2), (4, 2), (5, 3)])
def test_a_pooling_takes_nine_rounds_a_level_of_rows_and_of_columns(kernel, levels):
    assert rounds() == 2 + 9 + 1  # two linear layers, the ReLU, the result
    assert rounds(kernel=kernel) - rounds() == 9 * 2 * levels


@pytest.mark.parametrize(("classes", "levels"), [(2, 1), (3, 2), (4, 2), (9, 4)])
def test_a_label_takes_nine_rounds_a_level_of_the_tournament(classes, levels):
    """P0's share of the label is on its way while P1 still waits for its own."""
    assert rounds("label", classes=classes) == 2 + 9 + 9 * levels


def test_an_opening_is_sent_once_a_version():
    plan = every_operation()
    weights = weights_for(plan, 40)
    _, pixels = images(plan, 1)
    mask = Seed.fresh()
    first = Session(plan, weights, mask=mask)
    scores = first.run(pixels)
    again = Session(plan, weights, mask=mask, opening=first.client.opening)
    assert np.abs(again.run(pixels) - scores).max() < 0.01 * np.abs(scores).max()
    weights_bytes = 8 * sum(np.prod(shape) for _, shape in plan.linear())
    assert first.prepared[0, 1] - again.prepared[0, 1] == weights_bytes


def test_no_linear_layer_is_prepared_anew_for_a_second_session():
    plan = every_operation()
    weights, mask = weights_for(plan, 40), Seed.fresh()
    _, pixels = images(plan, 1)
    layers, made = len(list(plan.linear())), []

    def noted(weight, window):
        made.append(weight.shape)
        return LinearMap64(weight, window)

    first = Session(plan, weights, mask=mask, linear_map=noted)
    scores = first.run(pixels)
    assert len(made) == 3 * layers  # W at P0, E at P1, A at P2
    opening = first.client.opening
    again = Session(plan, weights, mask=mask, opening=opening, linear_map=noted)
    again.owner = Owner(first.model, 1, mask)
    made.clear()
    assert np.abs(again.run(pixels) - scores).max() < 0.01 * np.abs(scores).max()
    assert len(made) == layers  # A alone, whose products are each session's own


def test_weights_do_not_show():
    plan = every_operation()
    weights = weights_for(plan, 40)
    assert repr(PreparedModel(plan, weights)) == "PreparedModel(<secret>)"


def test_what_does_not_fit_is_refused():
    plan = every_operation()
    model = PreparedModel(plan, weights_for(plan, 1))
    for batch in (0, 65):
        with pytest.raises(InvalidInput):
            Client(plan, batch)
        with pytest.raises(InvalidInput):
            Assistant(plan, batch, Seed.fresh())
        with pytest.raises(InvalidInput):
            Owner(model, batch, Seed.fresh())
    with pytest.raises(InvalidInput, match="not those of the plan's layers"):
        PreparedModel(plan, {})
    other = every_operation("label")
    opening = PreparedOpening(
        other, dict(zip(weights_for(other, 1), model.opening(Seed.fresh()), strict=True))
    )
    with pytest.raises(InvalidInput, match="another plan"):
        Client(plan, 1, opening)
    with pytest.raises(InvalidInput, match="images"):
        next(Client(plan, 1).run(np.zeros((1, 2, 3, 4))))


class Feed:
    """A peer that says the same byte for ever."""

    def __init__(self, byte):
        self.byte = byte

    def send(self, data):
        pass

    def receive(self, size):
        return memoryview(self.byte * size)


def test_elements_out_of_range_are_malformed():
    plan = every_operation()
    client = Client(plan, 1)
    carry(client.prepare(), {0: Feed(b"\1"), 2: Feed(b"\1")})
    with pytest.raises(MalformedMessage, match="field"):
        carry(client.run(np.zeros((1, *plan.input_shape))), {0: Feed(b"\x43"), 2: Feed(b"\x43")})
    owner = Owner(PreparedModel(plan, weights_for(plan, 1)), 1, Seed.fresh())
    with pytest.raises(MalformedMessage, match="0 or 1"):
        carry(owner.prepare(), {1: Feed(b"\2"), 2: Feed(b"\2")})
    with pytest.raises(MalformedMessage, match="ring"):
        carry(receive_odd(0, 3), {0: Feed(b"\xff")})
