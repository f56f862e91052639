from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from primia.chassis.context import Context
from services.data_node.datasets import store, tasks
from tests.support.contexts import Cast
from tests.support.radiographs import draw


def validate(ctx: Context, name: str = "chest") -> None:
    with ctx.db.reading() as session:
        dataset_id = store.find(session, name).id
    tasks.validate(ctx, dataset_id)


def test_register_look_and_delete(client: TestClient, lite_node: Context, images_root: Path):
    root = draw(images_root / "chest", 2, seed=1)
    answer = client.post("/datasets", json={"name": "chest", "path": str(root)})
    assert answer.status_code == 202
    assert answer.headers["Location"] == "/datasets/chest"
    assert answer.json()["state"] == "validating"
    assert str(images_root) not in answer.text
    validate(lite_node)
    shown = client.get("/datasets/chest").json()
    assert (shown["state"], shown["classes"], shown["patients"]) == (
        "ready",
        {"normal": 2, "viral": 2},
        4,
    )
    assert client.get("/datasets").json() == {"datasets": [shown]}
    assert client.delete("/datasets/chest").status_code == 204
    assert client.get("/datasets/chest").status_code == 404
    assert sorted(path.name for path in root.iterdir()) == ["normal", "viral"]


def test_registering_sends_a_job(client: TestClient, lite_node: Context, images_root: Path):
    root = draw(images_root / "chest", 2, seed=1)
    with lite_node.jobs.celery.connection_for_read() as connection:
        queue = connection.SimpleQueue(lite_node.jobs.queue)
        queue.clear()  # the broker is the whole session's
        client.post("/datasets", json={"name": "chest", "path": str(root)})
        message = queue.get(timeout=5)
        message.ack()
    assert message.headers["task"] == "datasets.validate"


def test_a_place_outside_is_refused(client: TestClient, tmp_path: Path):
    answer = client.post("/datasets", json={"name": "chest", "path": str(tmp_path)})
    assert (answer.status_code, answer.json()["type"]) == (403, "urn:primia:problem:forbidden")
    assert client.get("/datasets").json() == {"datasets": []}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"name": "chest"}, "path or csv"),
        ({"name": "chest", "path": "/x", "csv": "/y"}, "path or csv"),
        ({"name": "../x", "path": "/x"}, "name"),
        ({"name": "chest", "path": "/x", "more": 1}, "more"),
        ({"name": "chest", "path": "/x", "patient_pattern": "("}, "regular expression"),
        ({"name": "chest", "path": "/x", "patient_pattern": "abc"}, "group"),
        ({"name": "chest", "path": "images"}, "absolute"),
    ],
)
def test_a_request_that_makes_no_sense_is_explained(client: TestClient, body, named: str):
    answer = client.post("/datasets", json=body)
    assert answer.status_code == 422
    assert named in answer.json()["detail"]


def test_a_name_is_given_once(client: TestClient, images_root: Path):
    body = {"name": "chest", "path": str(draw(images_root / "chest", 2, seed=1))}
    assert client.post("/datasets", json=body).status_code == 202
    assert client.post("/datasets", json=body).status_code == 409


def test_problems_come_in_pages(client: TestClient, lite_node: Context, images_root: Path):
    root = draw(images_root / "chest", 2, seed=1)
    for number in range(5):
        (root / "viral" / f"bad{number}.png").write_bytes(b"bad %d" % number)
    client.post("/datasets", json={"name": "chest", "path": str(root)})
    validate(lite_node)
    shown = client.get("/datasets/chest").json()
    assert (shown["state"], shown["errors"]) == ("rejected", 5)
    files, after = [], 0
    while after is not None:
        page = client.get("/datasets/chest/problems", params={"after": after, "limit": 2}).json()
        files += [each["file"] for each in page["problems"]]
        after = page["next"]
    assert files == [f"viral/bad{number}.png" for number in range(5)]


def test_unknown_names_are_404(client: TestClient):
    for method, path in (("GET", ""), ("GET", "/problems"), ("DELETE", "")):
        answer = client.request(method, f"/datasets/nothing{path}")
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:primia:problem:not-found")


@pytest.mark.parametrize("issuer", ["model-owner", "node-b", "crypto-provider"])
def test_data_sets_are_for_users_alone(client: TestClient, cast: Cast, issuer: str):
    headers = cast.headers(issuer, "node-a")
    for method, path in (
        ("GET", "/datasets"),
        ("POST", "/datasets"),
        ("GET", "/datasets/x"),
        ("GET", "/datasets/x/problems"),
        ("DELETE", "/datasets/x"),
    ):
        answer = client.request(
            method, path, headers=headers, json={} if method == "POST" else None
        )
        assert answer.status_code == 403, (method, path)


def test_strangers_stay_outside(client: TestClient, cast: Cast):
    for headers in (
        {"Authorization": ""},
        cast.headers("mallory", "node-a"),
        cast.headers("alice", "node-b"),
    ):
        assert client.get("/datasets", headers=headers).status_code == 401


def test_one_in_use_is_not_deleted(client: TestClient, lite_node: Context, images_root: Path):
    root = draw(images_root / "chest", 2, seed=1)
    client.post("/datasets", json={"name": "chest", "path": str(root)})
    validate(lite_node)
    with lite_node.db.session() as session:
        store.hold(session, store.find(session, "chest"), "run 7")
    answer = client.delete("/datasets/chest")
    assert (answer.status_code, "run 7" in answer.json()["detail"]) == (409, True)


def test_decoded_pixels_go_with_the_data_set(
    client: TestClient, lite_node: Context, images_root: Path
):
    root = draw(images_root / "chest", 2, seed=1)
    client.post("/datasets", json={"name": "chest", "path": str(root)})
    validate(lite_node)
    with lite_node.db.reading() as session:
        dataset_id = store.find(session, "chest").id
    cache = lite_node.files.path("pixels", dataset_id, "x.npy")
    cache.write_bytes(b"pixels")
    client.delete("/datasets/chest")
    assert not cache.exists()


def test_every_route_is_documented(client: TestClient):
    paths = client.get("/openapi.json").json()["paths"]
    for path, methods in paths.items():
        if path.startswith(("/datasets", "/runs")):
            for method, operation in methods.items():
                assert operation["summary"], (method, path)
                assert {"401", "403"} <= set(operation["responses"]), (method, path)
