"""What each role hears is uniform, or a fair bit, whatever the values are.

Chi-square tests at a false-alarm rate of 1e-6 each; controls show that they notice.
"""

import numpy as np
import pytest

from primia.mpc.securenn import field, layout, odd
from primia.mpc.securenn.compare import differences
from primia.mpc.securenn.gates import select_positive
from primia.mpc.securenn.layout import stream
from tests.primia.mpc.securenn.test_gates import COMMON, DEALT, PARTIES, helper, shares
from tests.primia.mpc.test_transcripts import constant_weights, looks_uniform
from tests.support.inference import Builder, seed
from tests.support.securenn import Grid, Session

COUNT = layout.BLOCK


def words_look_uniform(values):
    """All eight bytes of 64-bit words, each by itself."""
    lanes = np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8)
    return all(looks_uniform(lanes[:, lane], 256) for lane in range(8))


@pytest.fixture(scope="module", params=[-(2**40), -1, 0, 1, 70_000, 2**61 - 1])
def heard(request):
    """One gate on one block of equal values: pair of roles -> the messages in order."""
    grid = Grid()
    values = np.full(COUNT, request.param)
    talks = {i: select_positive(PARTIES[i], 0, y, [y]) for i, y in enumerate(shares(values))}
    grid.run({**talks, 2: helper(COUNT).run()})
    return {pair: pipe.log for pair, pipe in grid.pipes.items()}


def test_what_p2_hears_is_uniform_but_for_one_zero_in_half_of_the_cases(heard):
    for party in (0, 1):
        masked, *compared = heard[party, 2]
        assert words_look_uniform(masked)
        assert all(looks_uniform(each, 67) for each in compared)
    assert words_look_uniform(heard[0, 2][0] - heard[1, 2][0])
    for first, second in zip(heard[0, 2][1:], heard[1, 2][1:], strict=True):
        d = field.add(first, second)
        zeros = (d == 0).sum(axis=0)
        assert zeros.max() == 1
        assert looks_uniform(zeros, 2)
        found, places = np.nonzero(d.T == 0)
        assert looks_uniform(places, 64)
        assert looks_uniform(d[d > 0] - 1, 66)
        assert looks_uniform(d[0, zeros == 0].astype(int) - 1, 66)
        assert len(found) == zeros.sum()


def test_what_the_parties_hear_is_uniform(heard):
    for pair in ((0, 1), (1, 0)):
        opened, *masked = heard[pair]
        for message in (opened, *masked):
            assert words_look_uniform(message)
    for message in heard[2, 1]:
        if message.dtype == np.uint8:
            assert looks_uniform(message, 67)
        else:
            assert words_look_uniform(message)
    assert heard[2, 0] == [], "P0's shares come from its seed"


def test_jointly_with_what_a_party_knows(heard):
    """Opened sums, less the party's own mask, still hide the other's share."""
    for party in (0, 1):
        own = odd.uniform(stream(DEALT[party], 0, "x"), COUNT)
        assert words_look_uniform(odd.subtract(heard[1 - party, party][0], own))
    r = [odd.uniform(stream(COMMON, 0, f"r{j}"), COUNT) for j in (0, 1)]
    assert not words_look_uniform(heard[0, 2][0] + heard[1, 2][0] - r[0] - r[1]), "a control"


def test_without_shares_of_zero_p2_would_learn_the_differences():
    """P2 deals the bits' shares: the quotient of both messages would give c_i away, were the
    factor all that masks them. It is what the shares of zero are for."""
    x = np.full(COUNT, 12345, np.uint64)
    bits = field.bits_of(x)
    first = field.uniform(stream(seed(9), 0, "bits"), bits.shape)
    r, beta = np.zeros(COUNT, np.uint64), np.zeros(COUNT, np.uint8)
    c = [
        differences(party, share, r, beta)
        for party, share in enumerate((first, field.subtract(bits, first)))
    ]
    factors = field.uniform_nonzero(stream(COMMON, 0, "factors"), bits.shape)
    products = [field.multiply(share, factors) for share in c]
    crossed = [field.multiply(products[1 - i], np.maximum(c[i], 1)) for i in (0, 1)]
    told = (crossed[0] == crossed[1])[(c[0] > 0) & (c[1] > 0)]
    assert told.all()


@pytest.mark.parametrize(("pixel", "value"), [(0.0, 0), (3.0, 7), (-3.0, -100)])
def test_what_crosses_around_linear_layers_is_uniform(pixel, value):
    b = Builder((1, 16, 16))
    b.head(b.relu(b.conv(0, 4)), 3)
    plan = b.plan(6)
    session = Session(plan, constant_weights(plan, value), 16, seed(8))
    session.run(np.full((16, 1, 16, 16), pixel))
    pipes = session.grid.pipes
    image, product = pipes[1, 0].log[1], pipes[2, 1].log[1]  # behind a flag and a seed
    assert image.shape == (16, 1, 16, 16)
    assert words_look_uniform(image)
    assert product.shape == (16, 4, 16, 16)
    assert words_look_uniform(product)


@pytest.mark.parametrize("value", [0, 7, -100])
def test_the_opened_weights_are_uniform(value):
    b = Builder((8, 6, 6))
    b.head(b.relu(b.conv(0, 32)), 3)
    plan = b.plan(6)
    session = Session(plan, constant_weights(plan, value), 1, seed(8))
    session.run(np.zeros((1, 8, 6, 6)))
    layers = session.grid.pipes[0, 1].log[1:3]  # behind a seed
    assert [layer.shape for layer in layers] == [shape for _, shape in plan.linear()]
    assert words_look_uniform(np.concatenate([layer.ravel() for layer in layers]))
