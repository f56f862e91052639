"""The oracle's gates at their borders, and its report of headroom."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primia.errors import InvalidInput
from primia.mpc.compiled import CompiledModel
from primia.mpc.oracle import decode_scores, encode, evaluate, narrow, to_ring
from primia.mpc.plan import Dense, Flatten, MaxPool, Narrow, Plan, SumPool
from primia.mpc.weights import LayerWeights
from tests.support.inference import Builder, plain, plain_narrow, signed, weights_for, words

VALUES = st.integers(-(2**29), 2**29)
SHARES = st.integers(0, 2**32 - 1)


@given(y=VALUES, share=SHARES, low=st.integers(1, 24))
@settings(max_examples=300)
def test_narrowing_rounds_up_or_down(y, share, low):
    found = int(narrow(np.array(y), low, np.array(share)))
    assert -1 < found - y / 2**low <= 1
    assert found == int(plain_narrow(np.array(y), low, 32 - low, np.array(share)))


@given(y=VALUES, low=st.integers(0, 24))
@settings(max_examples=100)
def test_without_shares_narrowing_rounds_to_the_nearest(y, low):
    assert int(narrow(np.array(y), low)) == math.floor(y / 2**low + 0.5)


def test_the_rounding_is_fair():
    """The mean over all shares is the value itself, to 6 sigma."""
    shares, low, y = words(1, 1 << 17).astype(np.int64), 12, (1000 << 12) + (1 << 10)
    found = narrow(np.full(len(shares), y), low, shares)
    assert set(np.unique(found)) == {1000, 1001}
    assert abs((found == 1001).sum() - len(found) / 4) < 6 * (len(found) * 3 / 16) ** 0.5


@given(y=st.integers(-(2**16), 2**16 - 2), share=SHARES, low=st.integers(1, 15))
@settings(max_examples=100)
def test_a_value_without_a_fraction_stays_but_for_one_share_in_two_to_the_low(y, share, low):
    found = int(to_ring(narrow(np.array(y << low), low, np.array(share)), 17))
    assert found == y + (share % 2**low == 0)


def test_to_ring_is_two_s_complement():
    given_values = np.array([2**31, -(2**31) - 1, 2**32 + 5, -3])
    assert to_ring(given_values).tolist() == [-(2**31), 2**31 - 1, 5, -3]


def model_of(ops, shape=(1, 4, 4), result="scores", bits=4, number=3):
    plan = Plan(shape, 10, tuple(ops), result)
    return CompiledModel(plan, weights_for(plan, number, bits))


def network(result="scores"):
    b = Builder((2, 8, 8))
    x = b.relu(b.max_pool(b.conv(0, 4)))
    y = b.conv(b.relu(b.conv(x, 4, groups=2)), 4)
    b.head(b.relu(b.add(y, x, 0, 4)), 3)
    return model_of(b.ops, (2, 8, 8), result)


def test_a_whole_plan_against_another_evaluator():
    model, image = network(), signed(9, (3, 2, 8, 8), 11)
    found = evaluate(model, image)
    np.testing.assert_array_equal(found.scores, plain(model.plan, model.weights, image))
    assert [value.shape[1:] for value in found.values] == list(model.plan.shapes()[1:])
    np.testing.assert_array_equal(found.labels, found.scores.argmax(axis=1))


def test_shares_reach_their_roundings_by_name_and_shape():
    model, image, asked = network(), signed(9, (2, 2, 8, 8), 11), []

    def shares(layer, shape):
        asked.append((layer, shape))
        return words(len(asked), shape)

    shared, nearest = evaluate(model, image, shares), evaluate(model, image)
    names = [op.layer for op in model.plan.ops if isinstance(op, Narrow)]
    assert asked == [(name, (2, 4, 4, 4)) for name in names]
    assert len(names) == 3
    difference = shared.values[2] - nearest.values[2]
    assert set(np.unique(difference)) <= {-1, 0, 1}
    assert not np.array_equal(shared.scores, nearest.scores)


def test_a_tie_goes_to_the_lower_index():
    plan = Plan((1, 1, 2), 10, (Flatten("flat", 0), Dense("fc", 1, 3, 4)), "label")
    weights = LayerWeights(np.zeros((3, 2), np.int32), np.array([1, 7, 7], np.int32))
    assert evaluate(CompiledModel(plan, {"fc": weights}), np.zeros((1, 1, 1, 2))).labels == [1]


def test_peaks_are_fractions_of_half_the_ring():
    plan = Plan((1, 1, 2), 10, (Flatten("flat", 0), Dense("fc", 1, 2, 4)), "label")
    weights = LayerWeights(np.array([[2**15, 0], [0, 2**14]], np.int32), np.array([5, 0], np.int32))
    model = CompiledModel(plan, {"fc": weights})
    found = evaluate(model, np.array([[[[2**10, -(2**12)]]]]))
    assert found.peaks["flat"] == 2**12 / 2**31
    assert found.peaks["fc"] == 2**26 / 2**31
    assert found.peaks["label"] == (2**25 + 5 + 2**26) / 2**31


def test_an_overflow_shows_in_the_peaks_and_wraps_in_the_values():
    plan = Plan((1, 1, 1), 10, (Flatten("flat", 0), Dense("fc", 1, 1, 4)))
    weights = LayerWeights(np.full((1, 1), 2**15, np.int32), np.zeros(1, np.int32))
    found = evaluate(CompiledModel(plan, {"fc": weights}), np.full((1, 1, 1, 1), 2**16))
    assert found.peaks["fc"] == 1.0
    assert found.scores.item() == -(2**31)


def test_a_pooling_peak_is_its_largest_difference():
    pool = MaxPool("pool", 0, (2, 2), (2, 2), (1, 1))
    model = model_of([pool, SumPool("sum", 1, (3, 3), (3, 3), (0, 0)), Flatten("flat", 2)])
    image = np.zeros((1, 1, 4, 4), np.int64)
    image[0, 0, 1, 1], image[0, 0, 2, 1], image[0, 0, 0, 0] = 70, -30, -500
    found = evaluate(model, image)
    assert found.peaks["pool"] == 100 / 2**31  # the corner stands alone in its window
    assert found.values[0].reshape(-1)[0] == -500


def test_images_are_encoded_to_the_nearest_unit_and_bounded():
    plan = network().plan
    assert encode(plan, np.array([1.0, -0.5, 0.0004, 0.0005])).tolist() == [1024, -512, 0, 1]
    with pytest.raises(InvalidInput):
        encode(plan, np.array([np.nan]))
    with pytest.raises(InvalidInput):
        encode(plan, np.array([2.0**20]))


def test_scores_are_decoded_at_the_plan_s_last_scale():
    plan = network().plan
    assert decode_scores(plan, np.array([[1 << plan.scales()[-1]]])).tolist() == [[1.0]]
