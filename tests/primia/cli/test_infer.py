"""What ``primia infer`` prints, for people and for programs."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from rich.console import Console

from primia.cli.infer import document, table
from primia.cli.output import Format, show
from primia.messages.inference import (
    Agreement,
    Cost,
    InferenceResult,
    InferenceStatus,
    Prediction,
)

ID = "0" * 32
AGREEMENT = Agreement(images=16, same_labels=0.9375, largest_difference=0.0123)
CHOSEN = "Expected: fss calibrated 1.0 s, securenn exact 2.0 s. Measured: owner 0.2 ms."


def status(**changes):
    given = {
        "id": ID, "model": "chest", "version": 3, "result": "scores", "images": ("a.png",),
        "state": "done", "attempts": 2, "created": datetime(2030, 1, 1, tzinfo=UTC),
        "cost": Cost(material_seconds=1.25, offline_seconds=0.5, online_seconds=0.75,
                     material_bytes=2_000_000, online_bytes=500_000),
    }  # fmt: skip
    return InferenceStatus(**{**given, **changes})


def result():
    scores = {"normal": -0.25, "viral": 1.5}
    prediction = Prediction(image="a.png", label="viral", scores=scores)
    return InferenceResult(id=ID, model="chest", version=3, predictions=(prediction,))


def printed(given):
    console = Console(width=200)
    with console.capture() as found:
        console.print(table(result(), given))
    return found.get()


def test_a_table_has_the_scores_the_cost_and_the_way():
    shown = printed(status())
    assert "chest v3, fss, exact: online 0.75 s, before it 1.75 s, 2.5 MB" in shown
    row = next(line for line in shown.splitlines() if "a.png" in line)
    assert [word for word in row.split() if word not in "│┃"] == [
        "a.png",
        "viral",
        "-0.250",
        "1.500",
    ]
    assert "Agreement" not in shown


def test_a_table_says_how_far_windows_agree_and_why_they_were_chosen():
    shown = printed(status(accuracy="calibrated", agreement=AGREEMENT, chosen=CHOSEN))
    assert "chest v3, fss, calibrated: online" in shown
    told = "Agreement with the float model: 93.8% of 16 labels, logits within 0.0123."
    assert told in shown
    assert CHOSEN in shown


def test_json_leaves_nothing_out(capsys):
    given = status(accuracy="calibrated", agreement=AGREEMENT, chosen=CHOSEN)
    show(document(result(), given), Format.JSON, lambda: table(result(), given))
    found = json.loads(capsys.readouterr().out)
    assert set(found) == set(InferenceStatus.model_fields) | set(InferenceResult.model_fields)
    assert (
        InferenceResult.model_validate({k: found[k] for k in InferenceResult.model_fields})
        == result()
    )
    assert (
        InferenceStatus.model_validate({k: found[k] for k in InferenceStatus.model_fields}) == given
    )
