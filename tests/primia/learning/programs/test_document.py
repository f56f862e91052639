"""What a program may say, and that nothing else is taken."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from primia.errors import InvalidInput
from primia.learning.programs.description import lines
from primia.learning.programs.document import MAX_TEXT_BYTES, Program
from primia.learning.programs.shapes import Misfit, classes, cost, follow

HEAD = {"kind": "linear", "path": "head", "given": 4, "made": 2, "bias": True}
CONV = {"kind": "conv2d", "path": "a.conv", "given": 1, "made": 4, "kernel": [3, 3]}
STEPS = [
    {"op": "layer", "layer": "a.conv", "of": 0},
    {"op": "relu", "of": 1},
    {"op": "adaptive_avg_pool2d", "of": 2, "size": [1, 1]},
    {"op": "flatten", "of": 3},
    {"op": "layer", "layer": "head", "of": 4},
]
DOCUMENT = {"input": [1, 16, 16], "layers": [CONV, HEAD], "steps": STEPS}


def made(**changes) -> Program:
    return Program.model_validate({**DOCUMENT, **changes})


def with_step(at: int, **changes) -> dict:
    steps = [dict(step) for step in STEPS]
    steps[at] = {**steps[at], **changes}
    return {"steps": steps}


def with_layer(**changes) -> dict:
    return {"layers": [{**CONV, **changes}, HEAD]}


def test_a_program_is_known_by_the_hash_of_its_one_text():
    program = made()
    assert Program.parse(program.text) == program
    assert len(program.digest) == 64
    assert made(**with_step(1, op="tanh")).digest != program.digest


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(json.loads(made().text)),  # spaces
        json.dumps(DOCUMENT),  # defaults left out
        made().text.replace('"op":"relu"', '"of":2,"op":"relu"', 1),  # a key twice
        made().text + "\n",
        made().text[:-1],
        "[]",
        "",
        " " * (MAX_TEXT_BYTES + 1),
    ],
)
def test_a_text_in_another_form_is_refused(text):
    with pytest.raises(InvalidInput):
        Program.parse(text)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (with_step(1, op="eval"), "steps.1"),
        (with_step(1, op="aten.relu.default"), "steps.1"),
        (with_step(1, code="import os"), "steps.1.relu.code"),
        (with_step(1, of=2), "step 2 (relu) reads the result of a later one"),
        (with_step(1, of=-1), "steps.1.relu.of"),
        (with_step(1, of="1"), "steps.1.relu.of"),
        (with_step(0, layer="b.conv"), "layer b.conv is not listed"),
        (with_step(4, layer="a.conv"), "layer head is not listed, or not applied"),
        (with_step(3, start=0), "steps.3.flatten.start"),  # the batch
        (with_layer(path="a..conv"), "layers.0.conv2d.path"),
        (with_layer(path="a.__class__()"), "layers.0.conv2d.path"),
        (with_layer(path="head.conv"), "head.conv lies within another layer"),
        (with_layer(path="head"), "listed twice"),
        (with_layer(made=2**40), "layers.0.conv2d.made"),
        (with_layer(groups=3), "3 groups do not divide"),
        (with_layer(kind="lstm"), "layers.0"),
        ({"layers": []}, "layers"),
        ({"input": [2, 16, 16]}, "input"),
        ({"input": [1, 16]}, "input"),
        ({"format": 2}, "format"),
        ({"hook": "x"}, "hook"),
    ],
)
def test_what_a_program_cannot_say_is_named(change, named):
    with pytest.raises(ValidationError) as caught:
        made(**change)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (with_layer(given=3), "Step 1 (a.conv) of (1, 16, 16): it takes 3 channels"),
        (with_layer(kernel=[30, 3]), "a window of 30"),
        (with_layer(made=5), "Step 5 (head) of (5,): it takes 4 values"),
        (with_step(3, start=4), "Step 4 (flatten)"),
        ({"steps": [*STEPS[:1], {"op": "layer", "layer": "head", "of": 1}]}, "it takes 4 values"),
    ],
)
def test_sizes_that_do_not_fit_are_named_by_step(change, named):
    with pytest.raises(Misfit) as caught:
        follow(made(**change))
    assert named in str(caught.value)


def test_what_costs_too_much_is_refused_before_anything_runs():
    wide = {**CONV, "made": 1 << 20, "kernel": [99, 99], "padding": [49, 49]}
    wide = made(layers=[wide, {**HEAD, "given": 1 << 20}])
    with pytest.raises(Misfit, match="parameters; at most"):
        cost(wide)
    with pytest.raises(Misfit, match="values; at most"):
        cost(made(), (1, 1 << 13, 1 << 13))


def test_an_end_that_is_no_scores_is_refused():
    maps = made(layers=[CONV], steps=STEPS[:2])
    with pytest.raises(Misfit, match=r"gives \(4, 14, 14\) for an image"):
        classes(maps)


def test_it_is_described_in_lines():
    program = made()
    assert cost(program).parameters == 4 * 9 + 4 + 4 * 2 + 2
    assert cost(program).multiplications == 14 * 14 * 4 * 9 + 8
    assert program.operators() == {
        "adaptive_avg_pool2d": 1, "conv2d": 1, "flatten": 1, "linear": 1, "relu": 1,
    }  # fmt: skip
    found = lines(program)
    assert found[0] == "0: image: 1 × 16 × 16"
    assert found[1].startswith("1: conv2d a.conv of 0: 4 × 14 × 14 (given=1, made=4, kernel=3 × 3")
    assert found[5] == "5: linear head of 4: 2 (given=4, made=2, bias=True)"


def test_reading_and_describing_needs_no_torch():
    code = (
        "import sys; from primia.messages import programs, rounds; "
        "from primia.learning import spec; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
