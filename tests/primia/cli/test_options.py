import json
from pathlib import Path

import pytest

from primia.cli import options
from primia.errors import InvalidInput
from primia.messages.rounds import RunRequest

BASE = {"model": "chest", "nodes": ["node-a", "node-b"], "rounds": 2}


def test_every_setting_can_be_given_by_its_path() -> None:
    document = dict(BASE)
    options.assign(
        document,
        [
            "training.optimiser=sgd",
            "training.schedule.kind=cosine",
            "training.schedule.warm_up=0.1",
            "training.class_weights=[1, 2.5]",
            "training.local_stopping.patience=4",
            "aggregation.secure=false",
        ],
    )
    found = options.request_of(document)
    assert (found.training.optimiser, found.training.schedule.kind) == ("sgd", "cosine")
    assert found.training.class_weights == (1, 2.5)
    assert found.training.local_stopping is not None
    assert found.training.local_stopping.patience == 4
    assert not found.aggregation.secure


def _started_with(setting: str) -> RunRequest:
    document = dict(BASE)
    options.assign(document, [setting])
    return options.request_of(document)


def test_what_is_listed_is_what_can_be_set() -> None:
    paths = {path for path, _, _ in options.described(RunRequest)}
    assert {"model", "training.mixup", "training.schedule.final", "timeouts.train"} <= paths
    document = dict(BASE)
    absent = [path for path, _, text in options.described(RunRequest) if "or a group" in text]
    for path, default, _ in options.described(RunRequest):
        if default and not path.startswith(tuple(f"{group}." for group in absent)):
            options.put(document, path, json.loads(default))
    assert options.request_of(document) == RunRequest.model_validate(BASE)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("training.optimiser", "no setting"),
        ("=3", "no setting"),
        ("training.optimiser=lion", "training.optimiser"),
        ("training.colour=grey", "training.colour"),
        ("model.name.first=x", "group"),
        ("nodes=[]", "nodes"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        _started_with(setting)


@pytest.mark.parametrize("text", ["{", "[1]", None])
def test_a_file_that_is_no_request_is_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "run.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InvalidInput, match=r"run\.json"):
        options.read_document(file)


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps(BASE))
    assert options.read_document(file) == BASE
    assert options.read_document(None) == {}
