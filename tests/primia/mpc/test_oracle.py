"""The oracle's gates at their borders, and its report of headroom."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primia.errors import InvalidInput
from primia.mpc.compiled import CompiledModel
from primia.mpc.oracle import decode_scores, encode, evaluate, nearest, relu, to_ring
from primia.mpc.plan import Dense, Flatten, MaxPool, Plan, Relu, SumPool
from primia.mpc.weights import LayerWeights
from tests.support.inference import Builder, plain, plain_relu, signed, weights_for, words

VALUES = st.integers(-(2**29), 2**29)
MASKS = st.integers(0, 2**32 - 1)


@given(y=VALUES, r=MASKS, shift=st.integers(0, 24))
@settings(max_examples=300)
def test_relu_is_the_floor_or_one_unit_above_it(y, r, shift):
    found = int(relu(np.array(y), Relu("relu", 0, shift), np.array(r)))
    exact = max(y, 0) >> shift
    small = y < 2 << max(0, shift - 2)
    assert found in ((0, exact, exact + 1) if small else (exact, exact + 1))
    assert found <= -(-max(y, 0) >> shift)  # never above the ceiling


@given(y=VALUES, shift=st.integers(0, 24))
@settings(max_examples=100)
def test_without_masks_relu_is_the_floor(y, shift):
    assert int(relu(np.array(y), Relu("relu", 0, shift))) == max(y, 0) >> shift


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 10, 15])
@pytest.mark.parametrize("y", [-(2**31), -(2**29), -1, 0, 1, 2, 3, 2**12, 2**29, 2**31 - 1])
def test_relu_at_the_borders_for_every_kind_of_mask(y, shift):
    r = np.array([0, 1, 2**shift - 1, 2**shift, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1])
    r = np.concatenate([r, (-y - 1 + np.arange(3)) % 2**32])
    if not -(2**29) <= y <= 2**29:
        return  # outside the headroom only wrapping is promised
    found = relu(np.full(len(r), y), Relu("relu", 0, shift), r)
    exact = max(y, 0) >> shift
    assert set(found.tolist()) <= {exact, exact + 1, 0 if y < 2**shift else exact}


@given(y=VALUES, r=MASKS, shift=st.integers(0, 20))
@settings(max_examples=100)
def test_two_ways_of_writing_the_gate_agree(y, r, shift):
    op = Relu("relu", 0, shift)
    assert int(relu(np.array(y), op, np.array(r))) == plain_relu(y, shift, r, op.drop_low)


def test_a_dropped_high_bit_keeps_small_values_right():
    op, y = Relu("relu", 0, 4, drop_high=3), signed(1, (2000,), 28)
    r = words(2, (2000,)).astype(np.int64)
    np.testing.assert_array_equal(relu(y, op, r), relu(y, Relu("relu", 0, 4), r))


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


def test_masks_reach_their_gates_by_name_and_shape():
    model, image, asked = network(), signed(9, (2, 2, 8, 8), 11), []

    def masks(layer, shape):
        asked.append((layer, shape))
        return words(len(asked), shape)

    masked, floored = evaluate(model, image, masks), evaluate(model, image)
    assert asked == [("layer2", (2, 4, 4, 4)), ("layer4", (2, 4, 4, 4)), ("layer7", (2, 4, 4, 4))]
    difference = masked.values[2] - floored.values[2]
    assert set(np.unique(difference)) <= {-1, 0, 1}
    assert not np.array_equal(masked.scores, floored.scores)


def test_nearest_rounds_every_truncation():
    model, image = network(), signed(9, (2, 2, 8, 8), 11)
    found = evaluate(model, image, nearest(model.plan))
    pooled = found.values[1]
    np.testing.assert_array_equal(
        found.values[2], np.where(pooled >= 8, np.floor(pooled / 16 + 0.5), 0)
    )


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
