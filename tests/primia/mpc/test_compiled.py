"""Compiled models as files: whole, or refused."""

import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from primia.errors import MalformedMessage
from primia.mpc.compiled import WEIGHT_LIMIT, CompiledModel
from primia.mpc.plan import Dense, Flatten, Narrow, Plan, Relu
from primia.mpc.weights import LayerWeights
from tests.support.inference import weights_for

PLAN = Plan(
    (1, 2, 2), 10,
    (
        Flatten("flat", 0),
        Dense("fc.1", 1, 3, 12),
        Narrow("cut", 2, 12),
        Relu("relu", 3),
        Dense("fc.2", 4, 2, 12),
    ),
)  # fmt: skip


def model():
    return CompiledModel(PLAN, weights_for(PLAN, 5))


def tensors():
    return dict(safetensors.numpy.load(model().to_bytes()))


def refused(changed, match):
    with pytest.raises(MalformedMessage, match=match):
        CompiledModel.from_bytes(safetensors.numpy.save(changed))


def test_a_model_survives_its_file():
    given_model = model()
    found = CompiledModel.from_bytes(given_model.to_bytes())
    assert found.plan == PLAN
    assert list(found.weights) == ["fc.1", "fc.2"]
    for layer, part in given_model.weights.items():
        np.testing.assert_array_equal(found.weights[layer].weight, part.weight)
        np.testing.assert_array_equal(found.weights[layer].bias, part.bias)
    assert found.to_bytes() == given_model.to_bytes()


def test_weights_are_not_printed():
    text = repr(model()) + str(model().weights)
    assert "2 layers" in text
    assert "array" not in text


@pytest.mark.parametrize("name", ["fc.1.weight", "fc.2.bias", "plan"])
def test_a_missing_tensor_is_refused(name):
    changed = tensors()
    del changed[name]
    refused(changed, "no plan" if name == "plan" else "not those of its plan")


def test_a_stranger_s_tensor_is_refused():
    refused({**tensors(), "fc.3.weight": np.zeros((2, 2), np.int32)}, "not those of its plan")


@pytest.mark.parametrize(
    ("name", "array", "match"),
    [
        ("fc.1.weight", np.zeros((3, 5), np.int32), r"fc.1.weight is int32 \(3, 5\)"),
        ("fc.1.weight", np.zeros((3, 4), np.int64), "fc.1.weight is int64"),
        ("fc.1.weight", np.zeros((3, 4), np.float32), "fc.1.weight is float32"),
        ("fc.2.bias", np.zeros((1, 2), np.int32), "fc.2.bias"),
        ("fc.2.bias", np.zeros(2, np.uint32), "fc.2.bias is uint32"),
        ("fc.1.weight", np.full((3, 4), WEIGHT_LIMIT, np.int32), "2\\^16 or more"),
        ("fc.1.weight", np.full((3, 4), -(2**31), np.int32), "2\\^16 or more"),
        ("plan", np.zeros((2, 2), np.uint8), "no plan"),
        ("plan", np.zeros(4, np.int32), "no plan"),
        ("plan", np.frombuffer(b"{}", np.uint8), "exactly the fields"),
    ],
)
def test_a_wrong_tensor_is_refused_by_name(name, array, match):
    refused({**tensors(), name: array}, match)


def test_a_plan_for_other_layers_is_refused():
    document = json.loads(PLAN.to_json())
    document["ops"][1]["layer"] = "other"
    other = np.frombuffer(json.dumps(document).encode(), np.uint8)
    refused({**tensors(), "plan": other}, "not those of its plan")


def test_the_largest_weights_are_taken():
    weights = weights_for(PLAN, 5)
    part = weights["fc.1"]
    weights["fc.1"] = LayerWeights(np.full_like(part.weight, 1 - WEIGHT_LIMIT), part.bias)
    assert CompiledModel(PLAN, weights).weights["fc.1"].weight.min() == 1 - WEIGHT_LIMIT


def test_layers_must_be_the_plan_s():
    weights = weights_for(PLAN, 5)
    del weights["fc.1"]
    with pytest.raises(MalformedMessage, match="layers are not its plan's"):
        CompiledModel(PLAN, weights)


@given(data=st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_rubbish_is_refused(data):
    with pytest.raises(MalformedMessage):
        CompiledModel.from_bytes(data)


@given(cut=st.integers(0, 400), flip=st.integers(0, 400), value=st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_is_refused_or_still_a_whole_model(cut, flip, value):
    whole = bytearray(model().to_bytes())
    with pytest.raises(MalformedMessage):
        CompiledModel.from_bytes(bytes(whole[: -1 - cut]))
    whole[flip] ^= value
    try:
        found = CompiledModel.from_bytes(bytes(whole))
    except MalformedMessage:
        return
    assert set(found.weights) == {op.layer for op, _ in found.plan.linear()}
