"""A model of the owner's own with the real owner and real sites: nothing before its approval."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from primia.chassis.app import create_app
from primia.learning.layout import read_state
from primia.learning.models import state_layout
from primia.learning.programs.file import pack
from primia.learning.programs.network import Network
from primia.messages.rounds import Proposal
from services.data_node.main import create_service
from services.data_node.programs import store as programs
from tests.services.data_node.training.conftest import fetch, turn
from tests.services.data_node.training.test_training_with_owner import (  # noqa: F401  # fixtures
    CLASSES,
    owner,
    play,
    sites,
)
from tests.services.model_owner.federation import BINARY
from tests.services.model_owner.rounds.test_owner_bad_answers import assert_problem
from tests.support.programs import own_program

TRAINING = {"image_size": 16, "epochs": 1, "batch_size": 4, "learning_rate": 1e-2}


def with_program(model_owner, name: str = "own", **kind) -> str:
    """Registered with the weights of the user's module as version 2; the program's hash."""
    program, vector = own_program(**kind)
    spec = {"classes": CLASSES, "image_size": 16, "architecture": "program", "channels": 1}
    body = {"name": name, "program": program.model_dump(mode="json"), **spec}
    answer = model_owner.user("POST", "/models", json=body)
    assert answer.status_code == 202, answer.text
    model_owner.work()
    content = pack(program, vector)
    model_owner.user("POST", f"/models/{name}/versions", content=content, headers=BINARY)
    model_owner.work()
    return program.digest


def at(node, cast, method: str, path: str) -> httpx.Response:
    """alice at a site, through the service's own routes."""
    app = TestClient(create_app(create_service(), node), raise_server_exceptions=False)
    return app.request(method, path, headers=cast.headers("alice", node.identity.name))


def approve(sites, cast, digest: str) -> None:  # noqa: F811
    for node in sites:
        assert at(node, cast, "POST", f"/programs/{digest}/approve").status_code == 200


def weights(model_owner, version: int) -> np.ndarray:
    content = model_owner.user("GET", f"/models/own/versions/{version}/weights").content
    return read_state(content, state_layout(Network(own_program()[0])))


def test_a_run_is_refused_before_the_approval_and_trains_after_it(owner, sites, cast):  # noqa: F811
    model_owner, _ = owner
    digest = with_program(model_owner)
    refused = model_owner.start(model="own", training=TRAINING)
    play(model_owner, sites)
    shown = model_owner.show(refused)
    assert shown["state"] == "failed"
    assert f"not approved: SHA-256 {digest}" in shown["reason"]
    (waiting,) = at(sites[0], cast, "GET", "/programs").json()["programs"]
    assert (waiting["digest"], waiting["model"], waiting["approved"]) == (digest, "own", None)
    approve(sites, cast, digest)
    report = at(sites[0], cast, "GET", f"/programs/{digest}").json()
    assert report["approved_by"] == "alice"
    assert report["approved"] is not None
    assert report["description"]["parameters"] == 346
    assert report["description"]["operators"]["conv2d"] == 3
    run = model_owner.start(model="own", training=TRAINING)
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert (shown["state"], shown["reason"], shown["secure"]) == ("finished", "", True)
    before, after = weights(model_owner, 2), weights(model_owner, shown["final_version"])
    np.testing.assert_array_equal(before, own_program()[1])
    assert np.abs(after - before).max() > 1e-3


def test_plain_and_secure_training_of_a_program_agree(owner, sites, cast):  # noqa: F811
    model_owner, _ = owner
    approve(sites, cast, with_program(model_owner))  # before any run has come with it
    found = []
    for secure in (True, False):
        aggregation = {"secure": secure}
        run = model_owner.start(
            model="own", version=2, rounds=2, training=TRAINING, aggregation=aggregation
        )
        play(model_owner, sites)
        shown = model_owner.show(run)
        assert (shown["state"], shown["reason"]) == ("finished", "")
        found.append(weights(model_owner, shown["final_version"]))
    np.testing.assert_allclose(*found, atol=1e-5)


def test_another_program_needs_another_approval(owner, sites, cast):  # noqa: F811
    model_owner, _ = owner
    approve(sites, cast, with_program(model_owner))
    other = with_program(model_owner, "other", batch_norm=True)
    run = model_owner.start(model="other", training=TRAINING)
    play(model_owner, sites)
    assert f"not approved: SHA-256 {other}" in model_owner.show(run)["reason"]


def test_a_pending_run_waits_for_the_programs_approval(owner, sites, cast):  # noqa: F811
    model_owner, _ = owner
    node = sites[0]
    node.settings = node.settings.model_copy(update={"approval": "manual"})
    digest = with_program(model_owner)
    run = model_owner.start(model="own", training=TRAINING)
    turn(node)
    view = at(node, cast, "GET", f"/runs/{run}").json()
    assert view["model_card"]["program"] == digest
    assert any(digest in each for each in view["objections"])
    headers = cast.headers("alice", node.identity.name)
    app = TestClient(create_app(create_service(), node))
    answer = app.post(f"/runs/{run}/approve", headers=headers, json={"dataset": "chest"})
    assert_problem(answer, 409, "conflict")
    approve([node], cast, digest)
    answer = app.post(f"/runs/{run}/approve", headers=headers, json={"dataset": "chest"})
    assert answer.status_code == 200, answer.text


def test_a_revoked_program_is_not_run_again(owner, sites, cast):  # noqa: F811
    model_owner, _ = owner
    digest = with_program(model_owner)
    approve(sites, cast, digest)
    run = model_owner.start(model="own", training=TRAINING)
    for node in sites:
        turn(node)
    assert at(sites[2], cast, "DELETE", f"/programs/{digest}").status_code == 204
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert shown["state"] == "finished"
    (site,) = [each for each in shown["reports"][0]["sites"] if each["node"] == "node-c"]
    assert "program-not-approved" in site["dropped"]


def test_a_program_that_is_not_the_cards_is_no_proposal(owner, sites, cast):  # noqa: F811
    model_owner, _ = owner
    with_program(model_owner)
    model_owner.start(model="own", training=TRAINING)
    document = fetch(sites[0]).proposal.model_dump(mode="json")
    other, _ = own_program(batch_norm=True)
    with pytest.raises(ValueError, match="not the one whose hash"):
        Proposal.model_validate({**document, "program": other.model_dump(mode="json")})
    with pytest.raises(ValueError, match="not the one whose hash"):
        Proposal.model_validate({**document, "program": None})


def test_a_program_trains_privately_and_one_with_batch_norm_is_refused(owner, sites, cast):  # noqa: F811
    model_owner, _ = owner
    approve(sites, cast, with_program(model_owner))
    privacy = {"dp_sgd": {"epsilon": 3.0}}
    run = model_owner.start(model="own", training=TRAINING, privacy=privacy)
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert (shown["state"], shown["reason"]) == ("finished", "")
    with_program(model_owner, "other", batch_norm=True)
    body = {"model": "other", "nodes": ["node-a", "node-b"], "rounds": 1, "training": TRAINING}
    answer = model_owner.user("POST", "/rounds", json={**body, "privacy": privacy})
    assert_problem(answer, 422, "invalid-input")
    assert "BatchNorm" in answer.json()["detail"]


def test_what_no_run_has_come_with_is_not_found(lite_node, cast):
    assert_problem(at(lite_node, cast, "GET", f"/programs/{'0' * 64}"), 404, "not-found")
    assert_problem(at(lite_node, cast, "DELETE", f"/programs/{'0' * 64}"), 404, "not-found")
    assert at(lite_node, cast, "POST", "/programs/abc/approve").status_code == 422
    with lite_node.db.reading() as session:
        assert programs.programs(session) == []
