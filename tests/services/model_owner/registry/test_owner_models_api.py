"""Models and versions over HTTP: registered, prepared by the worker, uploaded, downloaded."""

from __future__ import annotations

import hashlib
import os
import time

import numpy as np
import pytest
from safetensors.numpy import save

from primia.learning.calibration import pack, unpack
from primia.learning.layout import read_metadata, read_state, write_state
from primia.learning.models import create_model, flatten, spec_layout
from primia.learning.spec import ModelSpec
from primia.prg import Seed, Stream
from services.model_owner.registry import tasks, weights
from tests.services.model_owner.federation import BINARY, SPEC
from tests.services.model_owner.rounds.test_owner_bad_answers import assert_problem

NEW = {"name": "chest", "description": "Trials", **SPEC.model_dump(mode="json")}


def version(federation, number: int = 1) -> dict:
    return federation.user("GET", f"/models/chest/versions/{number}").json()


def upload(federation, content: bytes, **params):
    return federation.user(
        "POST", "/models/chest/versions", content=content, headers=BINARY, params=params
    )


def state(federation, scale: float = 0.01) -> bytes:
    words = Stream(Seed(bytes(16)), "state").words(federation.layout.size)
    return write_state((words / 2**32 * scale).astype(np.float32), federation.layout)


def test_a_model_gets_the_weights_of_its_seed(each_federation):
    federation = each_federation
    answer = federation.user("POST", "/models", json=NEW)
    assert (answer.status_code, answer.headers["Location"]) == (202, "/models/chest/versions/1")
    assert answer.json()["state"] == "preparing"
    federation.work()
    found = version(federation)
    assert (found["state"], found["source"], found["parent"]) == ("ready", "initialised", None)
    assert found["values"] == federation.layout.size
    body = federation.user("GET", "/models/chest/versions/1/weights").content
    assert found["bytes"] == len(body)
    assert found["digest"] == hashlib.sha256(body).hexdigest()
    wanted = flatten(create_model(SPEC))
    np.testing.assert_array_equal(read_state(body, federation.layout), wanted)
    assert read_metadata(body) == {"model": "chest", "version": 1}


def test_a_model_is_shown_with_its_specification_and_newest_version(federation):
    federation.user("POST", "/models", json=NEW)
    federation.work()
    shown = federation.user("GET", "/models/chest").json()
    assert ModelSpec.model_validate(shown["spec"]) == SPEC
    assert (shown["description"], shown["created_by"]) == ("Trials", "alice")
    assert shown["newest"] == version(federation)
    assert federation.user("GET", "/models").json() == {"models": [shown]}
    listed = federation.user("GET", "/models/chest/versions").json()
    assert listed == {"versions": [shown["newest"]]}


IMPOSSIBLE_MODELS = [
    ({"architecture": "alexnet"}, "architecture"),
    ({"classes": ["only"]}, "classes"),
    ({"classes": ["a", "a"]}, "twice"),
    ({"image_size": 8}, "16 to 256"),
    ({"channels": 2}, "channels"),
    ({"name": "No Good"}, "name"),
    ({"seed": -1}, "seed"),
    ({"surprise": 1}, "surprise"),
]


def test_a_model_that_cannot_be_is_refused_by_field(federation):
    for change, word in IMPOSSIBLE_MODELS:
        answer = federation.user("POST", "/models", json={**NEW, **change})
        assert_problem(answer, 422, "invalid-input", word)
    assert federation.user("GET", "/models").json() == {"models": []}


def test_a_name_is_given_once(federation):
    federation.user("POST", "/models", json=NEW)
    assert_problem(federation.user("POST", "/models", json=NEW), 409, "conflict", "chest already")


UNKNOWN = [
    ("/models/liver", "no model liver"),
    ("/models/liver/versions", "no model liver"),
    ("/models/liver/versions/1", "no model liver"),
    ("/models/liver/versions/1/weights", "no model liver"),
    ("/models/chest/versions/7", "chest has no version 7"),
    ("/models/chest/versions/7/weights", "chest has no version 7"),
]


def test_what_is_unknown_is_named(federation):
    federation.user("POST", "/models", json=NEW)
    for path, word in UNKNOWN:
        assert_problem(federation.user("GET", path), 404, "not-found", word)


def test_weights_that_are_not_ready_are_a_conflict(federation):
    federation.user("POST", "/models", json=NEW)
    answer = federation.user("GET", "/models/chest/versions/1/weights")
    assert_problem(answer, 409, "conflict", "is preparing")


def test_an_uploaded_version_is_checked_and_keeps_its_lineage(each_federation):
    federation = each_federation.with_model()
    content = state(federation)
    answer = upload(federation, content, parent=1, image_size=32)
    assert (answer.status_code, answer.headers["Location"]) == (202, "/models/chest/versions/2")
    federation.work()
    found = version(federation, 2)
    assert (found["state"], found["source"], found["parent"]) == ("ready", "uploaded", 1)
    assert found["image_size"] == 32
    np.testing.assert_array_equal(
        federation.version_weights(2), read_state(content, federation.layout)
    )
    assert not list((federation.ctx.files.root / "models").glob("*.upload"))


def bad_shape(federation) -> bytes:
    other = ModelSpec(**{**SPEC.model_dump(), "classes": ("a", "b", "c")})
    layout = spec_layout(other)
    return write_state(np.zeros(layout.size, dtype=np.float32), layout)


def with_nan(federation) -> bytes:
    content = bytearray(state(federation))
    content[-4:] = np.float32(np.nan).tobytes()
    return bytes(content)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (bad_shape, "is needed"),
        (with_nan, "not finite"),
        (lambda _: b"not a safetensors file", "not a safetensors file"),
        (lambda federation: state(federation)[:-8], "not a safetensors file"),
    ],
)
def test_weights_that_do_not_fit_fail_with_the_reason(federation, make, word):
    federation.with_model()
    assert upload(federation, make(federation)).status_code == 202
    federation.work()
    found = version(federation, 2)
    assert found["state"] == "failed"
    assert word in found["reason"]
    answer = federation.user("GET", "/models/chest/versions/2/weights")
    assert_problem(answer, 409, "conflict", "is failed", word)
    root = federation.ctx.files.root / "models"
    assert [file.suffix for file in root.iterdir()] == [".safetensors"]


def test_the_newest_ready_version_is_the_one_that_is_trained(federation):
    federation.with_model()
    upload(federation, b"not weights")
    federation.work()
    run = federation.start()
    assert federation.show(run)["version"] == 1
    assert federation.user("GET", "/models/chest").json()["newest"]["version"] == 2


def test_an_upload_over_the_limit_or_empty_is_refused(federation):
    federation.with_model()
    limit = 4 * federation.layout.size + (1 << 20)
    assert_problem(upload(federation, bytes(limit + 1)), 413, "too-large", str(limit))
    assert_problem(upload(federation, b""), 422, "invalid-input", "empty")

    def pieces():
        for _ in range(limit // 65536 + 2):
            yield bytes(65536)

    assert_problem(upload(federation, pieces()), 413, "too-large", str(limit))
    assert len(federation.user("GET", "/models/chest/versions").json()["versions"]) == 1
    assert not list((federation.ctx.files.root / "models").glob("*.upload"))


@pytest.mark.parametrize(
    ("params", "status", "word"),
    [({"parent": 5}, 404, "no version 5"), ({"image_size": 400}, 422, "16 to 256")],
)
def test_an_upload_with_a_wrong_lineage_is_refused(federation, params, status, word):
    federation.with_model()
    answer = upload(federation, state(federation), **params)
    assert answer.status_code == status
    assert word in answer.json()["detail"]


def test_no_disk_space_is_said_before_the_upload_starts(federation):
    federation.with_model()
    federation.ctx.files._min_free = 1 << 60
    answer = upload(federation, state(federation))
    assert_problem(answer, 507, "storage-full", "are needed")


def test_a_version_waits_for_space_and_says_so(federation):
    files = federation.ctx.files
    reserve, files._min_free = files._min_free, 1 << 60
    assert federation.user("POST", "/models", json=NEW).status_code == 202
    with federation.ctx.db.reading() as session:
        row = tasks.store.find_version(session, "chest", 1)
    for _ in range(tasks.MAX_ATTEMPTS + 2):
        tasks.prepare(federation.ctx, row.id)
    found = version(federation)
    assert (found["state"], "are needed" in found["reason"]) == ("preparing", True)
    files._min_free = reserve
    federation.work()
    assert (version(federation)["state"], version(federation)["reason"]) == ("ready", "")


def calibrate(federation, content: bytes, path: str = "/models/chest/versions/1"):
    return federation.user("PUT", f"{path}/calibration", content=content, headers=BINARY)


def test_calibration_images_are_kept_beside_the_weights(federation):
    federation.with_model()
    pixels = np.arange(2 * 256, dtype=np.uint16).astype(np.uint8).reshape(2, 1, 16, 16)
    for given in (pixels, pixels[:1]):  # the latter replaces the former
        assert calibrate(federation, pack(given)).status_code == 204
    with federation.ctx.db.reading() as session:
        row = tasks.store.find_version(session, "chest", 1)
    stored = weights.calibration_path(federation.ctx.files, row.id).read_bytes()
    np.testing.assert_array_equal(unpack(stored, (1, 16, 16)), pixels[:1])


WRONG_CALIBRATION = [
    (b"nonsense", 422, "no safetensors file"),
    (b"", 422, "empty"),
    (pack(np.zeros((1, 3, 16, 16), np.uint8)), 422, "(1 to 64, 1, 16, 16)"),
    (pack(np.zeros((1, 1, 16, 16), np.float32)), 422, "U8"),
    (pack(np.zeros((0, 1, 16, 16), np.uint8)), 422, "1 to 64"),
    (save({"other": np.zeros((1, 1, 16, 16), np.uint8)}), 422, "'pixels'"),
    (bytes(64 * 256 + 4097), 413, "larger than"),
]


@pytest.mark.parametrize(("content", "status", "word"), WRONG_CALIBRATION)
def test_wrong_calibration_images_are_refused(federation, content, status, word):
    federation.with_model()
    answer = calibrate(federation, content)
    assert (answer.status_code, word in answer.json()["detail"]) == (status, True), answer.text
    folder = federation.ctx.files.path("models", "x").parent
    assert not list(folder.glob("*.calibration"))


def test_calibration_of_what_is_unknown_or_not_ready(federation):
    federation.user("POST", "/models", json=NEW)
    images = pack(np.zeros((1, 1, 16, 16), np.uint8))
    assert_problem(calibrate(federation, images), 409, "conflict", "preparing")
    for path, word in UNKNOWN[2::2]:
        if path.endswith("1") or path.endswith("7"):
            assert_problem(calibrate(federation, images, path), 404, "not-found", word)


def test_a_worker_that_dies_too_often_over_a_version_gives_it_up(federation, monkeypatch):
    class Killed(BaseException):
        pass

    def dying(*_args):
        raise Killed

    federation.user("POST", "/models", json=NEW)
    monkeypatch.setattr(weights, "initial", dying)
    for _ in range(tasks.MAX_ATTEMPTS):
        with pytest.raises(Killed):
            federation.work()
        assert version(federation)["state"] == "preparing"
    federation.work()
    assert version(federation)["state"] == "failed"
    assert "interrupted too often" in version(federation)["reason"]


def test_uploads_that_broke_off_are_removed(federation):
    federation.with_model()
    assert upload(federation, state(federation)).status_code == 202
    folder = federation.ctx.files.path("models", "x").parent
    (folder / "chest-0011.upload").write_bytes(b"half")
    (folder / "weights.0011.tmp").write_bytes(b"half")
    long_ago = time.time() - 7 * 3600
    for path in folder.iterdir():
        os.utime(path, (long_ago, long_ago))
    tasks.tidy(federation.ctx)
    assert sorted(path.suffix for path in folder.iterdir()) == [".safetensors", ".upload"]
    federation.work()  # the upload that waits for its check is still there
    assert version(federation, 2)["state"] == "ready"


def test_preparing_twice_changes_nothing(federation):
    federation.with_model()
    found = version(federation)
    with federation.ctx.db.reading() as session:
        row = tasks.store.find_version(session, "chest", 1)
    tasks.prepare(federation.ctx, row.id)
    tasks.prepare(federation.ctx, "0" * 32)
    assert version(federation) == found


def test_every_route_is_described(federation):
    document = federation.user("GET", "/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    mine = {
        path: operations
        for path, operations in document["paths"].items()
        if path.split("/")[1] in ("models", "rounds", "nodes", "node")
    }
    assert len(mine) >= 20
    for path, operations in mine.items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["summary"], where
            assert operation["tags"], where
            codes = set(operation["responses"])
            assert {"401", "403"} <= codes, where
            assert codes & {"200", "201", "202", "204"}, where
            if method in ("post", "put") and "requestBody" in operation:
                assert "422" in codes, where
    for path in ("/models", "/rounds"):
        content = mine[path]["post"]["requestBody"]["content"]["application/json"]
        assert content["examples"], path
