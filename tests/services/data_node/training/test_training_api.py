from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from primia.chassis.app import create_app
from primia.chassis.identity import Identity
from primia.messages import rounds as messages
from services.data_node.datasets.schemas import DatasetView
from services.data_node.training import intake, tasks
from services.data_node.training.schemas import (
    Approval,
    Refusal,
    RunSummaryView,
    RunView,
    Withdrawal,
)
from tests.services.data_node.conftest import data_node_service
from tests.services.data_node.training.conftest import NAMES, add_dataset, run_row, turn
from tests.support.contexts import Cast
from tests.support.owner_double import RUN
from tests.support.radiographs import draw


@pytest.fixture
def grid(federation):
    """Two nodes whose users decide; node-a has been asked."""
    made = federation(approval="manual")
    turn(made.nodes[0])
    return made


@pytest.fixture
def alice(grid, cast: Cast):
    app = create_app(data_node_service(), grid.nodes[0])
    with TestClient(app, raise_server_exceptions=False) as client:
        client.headers.update(cast.headers("alice", "node-a"))
        yield client


def told(grid) -> messages.Decision:
    """What the owner hears once the stored answer has been sent."""
    turn(grid.nodes[0])
    return messages.Decision.model_validate_json(grid.owner.answers["node-a", "decision", 0])


def test_a_pending_run_shows_what_it_asks_for(grid, alice: TestClient):
    (summary,) = alice.get("/runs", params={"state": "pending"}).json()["runs"]
    shown = alice.get(f"/runs/{RUN}").json()
    assert summary.items() <= shown.items()
    assert (shown["state"], shown["nodes"], shown["secure"], shown["threshold"]) == (
        "pending",
        ["node-a", "node-b"],
        True,
        2,
    )
    assert shown["model_card"]["classes"] == ["normal", "viral"]
    assert messages.Proposal.model_validate(shown["proposal"]) == grid.owner.proposal
    assert set(shown["proposal"]) == set(messages.Proposal.model_fields)
    assert (shown["objections"], shown["dataset"], shown["local_rounds"]) == ([], None, [])
    assert alice.get("/runs", params={"state": "active"}).json() == {"runs": []}


def test_nothing_is_answered_before_somebody_decides(grid, alice: TestClient):
    turn(grid.nodes[0])
    assert grid.owner.kinds("node-a") == []


def test_approving_tells_the_owner_samples_and_classes(grid, alice: TestClient):
    answer = alice.post(f"/runs/{RUN}/approve", json={"dataset": "chest"})
    assert answer.status_code == 200
    assert (answer.json()["state"], answer.json()["dataset"]) == ("active", "chest")
    assert answer.json()["decided_by"] == "alice"
    assert told(grid) == messages.Decision(
        accepted=True, samples=16, classes=("normal", "viral"), summed=2
    )
    assert alice.delete("/datasets/chest").status_code == 409


def test_refusing_gives_the_reason(grid, alice: TestClient):
    answer = alice.post(f"/runs/{RUN}/refuse", json={"reason": "No consent yet."})
    assert (answer.status_code, answer.json()["state"]) == (200, "refused")
    assert told(grid) == messages.Decision(accepted=False, reason="No consent yet.")


@pytest.mark.parametrize("path", ["approve", "refuse"])
def test_a_decision_is_made_once(alice: TestClient, path: str):
    assert alice.post(f"/runs/{RUN}/refuse", json={"reason": "No."}).status_code == 200
    body = {"dataset": "chest"} if path == "approve" else {"reason": "No."}
    answer = alice.post(f"/runs/{RUN}/{path}", json=body)
    assert (answer.status_code, "refused" in answer.json()["detail"]) == (409, True)


def test_a_site_can_leave_a_run_by_itself(grid, alice: TestClient):
    assert alice.post(f"/runs/{RUN}/withdraw", json={"reason": "No."}).status_code == 409
    alice.post(f"/runs/{RUN}/approve", json={"dataset": "chest"})
    told(grid)
    answer = alice.post(f"/runs/{RUN}/withdraw", json={"reason": "Consent revoked."})
    assert (answer.status_code, answer.json()["state"]) == (200, "withdrawn")
    assert answer.json()["reason"] == "alice: Consent revoked."
    grid.owner.answers["node-b", "decision", 0] = grid.owner.answers["node-a", "decision", 0]
    turn(grid.nodes[0])
    failure = messages.Failure.model_validate_json(grid.owner.answers["node-a", "failure", 0])
    assert "withdrawn here" in failure.detail
    assert "Consent" not in failure.detail
    assert alice.delete("/datasets/chest").status_code == 204


def test_examples_are_valid():
    for model in (Approval, Refusal, Withdrawal, RunSummaryView, RunView, DatasetView):
        for example in model.model_config["json_schema_extra"]["examples"]:
            model.model_validate(example)


def test_a_data_set_with_other_classes_is_not_accepted(grid, alice: TestClient, images_root: Path):
    root = draw(images_root / "other", 2, seed=3, classes=("normal", "bacterial"))
    add_dataset(grid.nodes[0], root, "other")
    answer = alice.post(f"/runs/{RUN}/approve", json={"dataset": "other"})
    assert answer.status_code == 409
    assert "it lacks viral" in answer.json()["detail"]
    assert alice.get(f"/runs/{RUN}").json()["state"] == "pending"


@pytest.mark.parametrize(("name", "status"), [("nothing", 404), ("../x", 422), (None, 422)])
def test_an_unknown_data_set_is_named(alice: TestClient, name: str | None, status: int):
    answer = alice.post(f"/runs/{RUN}/approve", json={"dataset": name} if name else {})
    assert answer.status_code == status
    assert alice.get(f"/runs/{RUN}").json()["state"] == "pending"


def test_unknown_runs_are_404(alice: TestClient):
    other = "0" * 32
    for method, path, body in (
        ("GET", "", None),
        ("GET", "/events", None),
        ("POST", "/approve", {"dataset": "chest"}),
        ("POST", "/refuse", {"reason": "No."}),
    ):
        assert alice.request(method, f"/runs/{other}{path}", json=body).status_code == 404
    assert alice.get("/runs/not-an-id").status_code == 422


def test_a_substituted_key_is_shown_and_cannot_be_approved(federation, cast: Cast):
    grid = federation(NAMES, approval="manual")
    fake = Identity.fresh("node-c").public_key
    cards = grid.owner.proposal.nodes
    cards = (*cards[:2], cards[2].model_copy(update={"public_key": fake}))
    grid.owner.proposal = grid.owner.proposal.model_copy(update={"nodes": cards})
    turn(grid.nodes[0])
    with TestClient(create_app(data_node_service(), grid.nodes[0])) as client:
        client.headers.update(cast.headers("alice", "node-a"))
        (objection,) = client.get(f"/runs/{RUN}").json()["objections"]
        assert "node-c comes with another identity key" in objection
        answer = client.post(f"/runs/{RUN}/approve", json={"dataset": "chest"})
        assert answer.status_code == 409
        assert objection in answer.json()["detail"]


def test_a_second_run_waits_for_the_first_to_end(grid, alice: TestClient):
    alice.post(f"/runs/{RUN}/approve", json={"dataset": "chest"})
    other = grid.owner.proposal.model_copy(update={"run": "cd" * 16})
    item = messages.Review(run=other.run, proposal=other)
    node = grid.nodes[0]
    tasks.work(node, intake.take_in(node, item))
    answer = alice.post(f"/runs/{other.run}/approve", json={"dataset": "chest"})
    assert answer.status_code == 409
    assert "another run" in answer.json()["detail"]
    assert alice.get(f"/runs/{other.run}").json()["objections"]


def test_how_a_run_goes_is_shown_and_streamed(federation, cast: Cast):
    grid = federation(rounds=2)
    grid.finish()
    with TestClient(create_app(data_node_service(), grid.nodes[0])) as client:
        client.headers.update(cast.headers("alice", "node-a"))
        shown = client.get(f"/runs/{RUN}").json()
        assert (shown["state"], shown["rounds_done"], shown["error"]) == ("finished", 2, None)
        assert [each["number"] for each in shown["local_rounds"]] == [1, 2]
        assert shown["loss"] == shown["local_rounds"][1]["loss"]
        assert 0 <= shown["accuracy"] <= 1
        assert shown["evaluation"]["samples"] > 0
        events = stream(client)
        assert [kind for _, kind, _ in events] == [
            "state", "state", "trained", "round", "trained", "round", "evaluation", "state",
        ]  # fmt: skip
        assert events[0][2]["state"] == "pending"
        assert events[-1][2]["state"] == "finished"
        rest = stream(client, last=events[5][0])
        assert rest == events[6:]


def stream(client: TestClient, last: int | None = None) -> list[tuple[int, str, dict]]:
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    with client.stream("GET", f"/runs/{RUN}/events", headers=headers) as answer:
        text = answer.read().decode()
    found = []
    for block in text.replace("\r\n", "\n").strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
        found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


@pytest.mark.parametrize("issuer", ["model-owner", "node-b", "crypto-provider"])
def test_runs_are_for_users_alone(alice: TestClient, cast: Cast, issuer: str):
    headers = cast.headers(issuer, "node-a")
    for method, path, body in (
        ("GET", "/runs", None),
        ("GET", f"/runs/{RUN}", None),
        ("GET", f"/runs/{RUN}/events", None),
        ("POST", f"/runs/{RUN}/approve", {"dataset": "chest"}),
        ("POST", f"/runs/{RUN}/refuse", {"reason": "No."}),
    ):
        answer = alice.request(method, path, headers=headers, json=body)
        assert answer.status_code == 403, (method, path)
    stranger = cast.headers("mallory", "node-a")
    assert alice.post(f"/runs/{RUN}/refuse", headers=stranger, json={}).status_code == 401
    assert alice.get(f"/runs/{RUN}").json()["state"] == "pending"


def test_a_plain_run_is_refused_where_the_site_does_not_allow_it(federation):
    grid = federation(secure=False, accept_plain_updates=False)
    for node in grid.nodes:
        turn(node)
        turn(node)
    row = run_row(grid.nodes[0])
    assert row.state == "refused"
    assert "secure aggregation" in row.reason
