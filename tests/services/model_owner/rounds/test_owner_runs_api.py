"""Starting, reading, following and cancelling runs; review; enrolled nodes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import redis

from primia.chassis.identity import Identity
from primia.messages.rounds import Proposal
from services.model_owner.rounds import tasks
from tests.services.model_owner.federation import NODES, Federation
from tests.services.model_owner.rounds.test_owner_bad_answers import assert_problem

PLAIN = {"aggregation": {"secure": False, "minimum_nodes": 2}}


def post(federation: Federation, **changes):
    body = {
        "model": "chest",
        "nodes": list(NODES),
        "rounds": 1,
        "training": {"image_size": 16},
        **changes,
    }
    return federation.user("POST", "/rounds", json=body)


IMPOSSIBLE_RUNS = [
    ({"model": "liver"}, 404, "not-found", ("no model liver",)),
    ({"version": 9}, 404, "not-found", ("chest has no version 9",)),
    ({"nodes": ["node-a", "node-x"]}, 404, "not-found", ("no data node node-x",)),
    ({"nodes": ["node-a", "alice"]}, 404, "not-found", ("no data node alice",)),
    ({"nodes": ["node-a", "node-a"]}, 422, "invalid-input", ("named twice",)),
    ({"nodes": ["node-a"]}, 422, "invalid-input", ("at least two nodes",)),
    ({"nodes": []}, 422, "invalid-input", ("nodes",)),
    ({"rounds": -1}, 422, "invalid-input", ("rounds",)),
    ({"rounds": 10_000, "repeats": 1}, 422, "invalid-input", ("together",)),
    ({"training": {"image_size": 8}}, 422, "invalid-input", ("image_size",)),
    ({"training": {"image_size": 300}}, 422, "invalid-input", ("small_cnn takes 16 to 256",)),
    ({"training": {"epochs": 1, "batches": 1}}, 422, "invalid-input", ("not both",)),
    ({"training": {"optimiser": "magic"}}, 422, "invalid-input", ("optimiser",)),
    ({"aggregation": {"threshold": 4}}, 422, "invalid-input", ("threshold 4",)),
    ({"surprise": 1}, 422, "invalid-input", ("surprise",)),
]


def test_a_run_that_cannot_be_is_refused_by_name(federation):
    federation.with_model()
    for changes, status, code, words in IMPOSSIBLE_RUNS:
        assert_problem(post(federation, **changes), status, code, *words)
    assert federation.user("GET", "/rounds").json()["runs"] == []


def test_a_threshold_of_half_the_nodes_is_refused(federation, cast):
    federation.with_model()
    federation.ctx.principals.add(Identity.fresh("node-d").principal("data_node"))
    four = {"nodes": [*NODES, "node-d"], "aggregation": {"threshold": 2}}
    answer = post(federation, **four)
    assert_problem(answer, 422, "invalid-input", "2 does not suit 4 nodes")
    assert "Choose 3 to 4" in answer.json()["hint"]


def test_a_model_that_is_not_ready_yet_is_a_conflict(federation):
    spec = {"name": "chest", "architecture": "small_cnn", "image_size": 16, "classes": ["a", "b"]}
    assert federation.user("POST", "/models", json=spec).status_code == 202
    assert_problem(post(federation), 409, "conflict", "is preparing")


def test_a_node_takes_part_in_one_run_at_once(each_federation):
    federation = each_federation.with_model()
    first = federation.start(nodes=["node-a", "node-b"])
    answer = post(federation, nodes=["node-b", "node-c"])
    assert_problem(answer, 409, "conflict", "node-b takes part in run", first)
    assert (answer.json()["node"], answer.json()["run"]) == ("node-b", first)
    nodes = {n["name"]: n["run"] for n in federation.user("GET", "/nodes").json()["nodes"]}
    assert nodes == {"node-a": first, "node-b": first, "node-c": None}
    federation.user("DELETE", f"/rounds/{first}")
    assert post(federation, nodes=["node-b", "node-c"]).status_code == 202


def test_a_node_that_refuses_is_out_and_free_for_another_run(federation):
    federation.with_model()
    run = federation.start(**PLAIN)
    refusal = {"accepted": False, "reason": "The ethics board has not met."}
    node = federation.nodes["node-c"]
    assert node.call("PUT", f"/rounds/{run}/decision", json=refusal).status_code == 204
    assert node.call("PUT", f"/rounds/{run}/decision", json=refusal).status_code == 204
    assert node.ask() is None
    other = federation.start(nodes=["node-c"], aggregation={"secure": False}, rounds=1)
    assert node.ask().run == other
    federation.run_out()
    sites = {site["node"]: site for site in federation.show(run)["sites"]}
    assert sites["node-c"]["state"] == "refused"
    assert sites["node-c"]["reason"] == "The ethics board has not met."
    assert federation.show(run)["state"] == federation.show(other)["state"] == "finished"


def test_a_run_that_too_many_refuse_fails_with_their_names(federation):
    federation.with_model()
    run = federation.start(**PLAIN)
    for name in ("node-a", "node-b"):
        federation.nodes[name].call("PUT", f"/rounds/{run}/decision", json={"accepted": False})
    shown = federation.show(run)
    assert shown["state"] == "failed"
    assert "node-a refused" in shown["reason"]
    assert "node-b refused" in shown["reason"]
    assert federation.nodes["node-c"].step().kind == "stop"


def test_a_silent_node_is_out_after_the_review(federation):
    federation.with_model()
    run = federation.start(**PLAIN)
    federation.turn("node-a", "node-b")
    federation.forward()
    assert federation.nodes["node-a"].ask().kind == "train"
    assert federation.nodes["node-c"].ask() is None
    assert federation.show(run)["sites"][2]["state"] == "silent"
    federation.run_out()
    assert federation.show(run)["state"] == "finished"


def test_a_failure_during_review_is_a_refusal_with_its_reason(federation):
    federation.with_model()
    run = federation.start(**PLAIN)
    federation.nodes["node-a"].fail(run, code="no-data")
    site = federation.show(run)["sites"][0]
    assert (site["state"], site["reason"]) == ("refused", "no-data: The disk is on fire.")


def test_labels_that_differ_fail_the_run_and_name_the_site(federation):
    federation.with_model()
    run = federation.start(**PLAIN)
    federation.nodes["node-b"].classes = ("normal", "tuberculosis")
    federation.turn("node-a", "node-b")
    shown = federation.show(run)
    assert shown["state"] == "failed"
    assert "labels of node-b differ from those of model chest version 1" in shown["reason"]
    assert "it lacks pneumonia" in shown["reason"]
    assert "does not know tuberculosis" in shown["reason"]


def test_an_acceptance_without_data_is_refused(federation):
    federation.with_model()
    run = federation.start(**PLAIN)
    node = federation.nodes["node-a"]
    answer = node.call("PUT", f"/rounds/{run}/decision", json={"accepted": True})
    assert_problem(answer, 422, "invalid-input", "samples and classes")


def test_the_proposal_carries_what_a_node_must_judge(federation):
    federation.with_model()
    run = federation.start(rounds=3, repeats=2)
    proposal = federation.nodes["node-a"].ask().proposal
    assert (proposal.run, proposal.owner, proposal.rounds) == (run, "model-owner", 5)
    assert (proposal.secure, proposal.threshold) == (True, 2)
    assert {card.name: card.public_key for card in proposal.nodes} == {
        name: federation.cast.identities[name].public_key for name in NODES
    }
    version = federation.user("GET", "/models/chest/versions/1").json()
    assert (proposal.model.digest, proposal.model.version) == (version["digest"], 1)
    assert proposal.model.classes == ("normal", "pneumonia")
    shown = federation.show(run)["proposal"]
    assert Proposal.model_validate(shown) == proposal
    assert set(shown) == set(Proposal.model_fields)


@pytest.mark.parametrize("kind", ["review", "train", "upload", "evaluate"])
def test_a_cancelled_run_stops_its_nodes_and_frees_them(federation, kind):
    federation.with_model()
    run = federation.start()
    federation.until(kind, number=2 if kind == "evaluate" else 1)
    answer = federation.user("DELETE", f"/rounds/{run}")
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    assert federation.user("DELETE", f"/rounds/{run}").status_code == 202
    assert federation.show(run)["reason"] == "Cancelled by alice."
    path, body, content = "", None, None
    for node in federation.nodes.values():
        item = node.ask()
        assert (item.kind, item.state) == ("stop", "cancelled")
        path, body, content = node.answer(item)
        assert node.put(path, body, content).status_code == 204
        assert node.put(path, body, content).status_code == 204
        assert node.ask() is None
    federation.work()
    assert not (federation.ctx.files.root / "runs" / run).exists()
    assert post(federation).status_code == 202


def test_a_finished_run_cannot_be_cancelled(federation):
    federation.with_model()
    run = federation.start()
    federation.run_out()
    answer = federation.user("DELETE", f"/rounds/{run}")
    assert_problem(answer, 409, "conflict", "finished cannot become cancelled")


def test_an_unknown_run_is_named(federation):
    unknown = "f" * 32
    for method, path in (("GET", ""), ("GET", "/events"), ("DELETE", "")):
        answer = federation.user(method, f"/rounds/{unknown}{path}")
        assert_problem(answer, 404, "not-found", unknown)


def test_runs_are_listed_newest_first_page_by_page(each_federation):
    federation = each_federation.with_model()
    runs = []
    for name in NODES:
        runs.append(federation.start(nodes=[name], aggregation={"secure": False}))
        federation.ctx.clock.forward(1)
    first = federation.user("GET", "/rounds", params={"limit": 2}).json()
    assert [run["id"] for run in first["runs"]] == [runs[2], runs[1]]
    rest = federation.user("GET", "/rounds", params={"limit": 2, "before": first["next"]}).json()
    assert [run["id"] for run in rest["runs"]] == [runs[0]]
    assert rest["next"] is None


def stream(federation: Federation, run: str, last: int | None = None):
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    return federation.user("GET", f"/rounds/{run}/events", headers=headers)


def parsed(answer) -> list[dict]:
    lines = answer.text.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def test_events_tell_the_run_from_its_beginning_and_end_with_it(federation):
    federation.with_model()
    run = federation.start()
    federation.run_out()
    answer = stream(federation, run)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    events = parsed(answer)
    kinds = [event["kind"] for event in events]
    assert kinds[0] == "created"
    assert kinds[-1] == "finished"
    assert kinds.count("accepted") == kinds.count("trained") == kinds.count("revealed") == 3
    phases = [event["detail"]["phase"] for event in events if event["kind"] == "round"]
    assert phases == [
        "training",
        "sharing",
        "uploading",
        "absorbing",
        "confirming",
        "unmasking",
        "opening",
    ]
    opened = next(event for event in events if event["kind"] == "opened")
    step = opened["detail"].pop("quantisation_step")
    assert set(step) == {"parameters", "buffers"}
    assert 0 < step["parameters"] < 1e-9
    assert opened["detail"] == {"samples": 63, "loss": 1.0, "accuracy": 0.5}
    assert [event["id"] for event in events] == sorted(event["id"] for event in events)


def test_events_go_on_after_the_last_one_seen(federation):
    federation.with_model()
    run = federation.start()
    federation.run_out()
    events = parsed(stream(federation, run))
    rest = parsed(stream(federation, run, events[4]["id"]))
    assert rest == events[5:]
    assert stream(federation, run, events[-1]["id"]).status_code == 204
    assert_problem(
        federation.user("GET", f"/rounds/{run}/events", headers={"Last-Event-ID": "x"}),
        422,
        "invalid-input",
        "Last-Event-ID",
    )


def test_a_long_poll_waits_and_says_nothing_when_there_is_nothing(federation):
    answer = federation.nodes["node-a"].call("GET", "/node/work", params={"wait": 0.3})
    assert (answer.status_code, answer.content) == (204, b"")
    assert federation.user("GET", "/nodes/node-a").json()["last_seen"] is not None
    too_long = federation.nodes["node-a"].call("GET", "/node/work", params={"wait": 1000})
    assert_problem(too_long, 422, "invalid-input", "wait")


def test_nodes_are_enrolled_shown_and_removed(federation):
    key = Identity.fresh("node-d").public_key
    answer = federation.user("POST", "/nodes", json={"name": "node-d", "public_key": key})
    assert (answer.status_code, answer.headers["Location"]) == (201, "/nodes/node-d")
    again = federation.user("POST", "/nodes", json={"name": "node-d", "public_key": key})
    assert again.status_code == 201
    other = {"name": "node-d", "public_key": Identity.fresh("node-d").public_key}
    assert_problem(federation.user("POST", "/nodes", json=other), 409, "conflict", "another key")
    assert federation.user("GET", "/nodes/node-d").json()["public_key"] == key
    assert federation.user("DELETE", "/nodes/node-d").status_code == 204
    assert_problem(federation.user("GET", "/nodes/node-d"), 404, "not-found", "node-d")


def test_a_bad_enrolment_is_refused(federation):
    short = {"name": "node-d", "public_key": "AAAA"}
    assert_problem(federation.user("POST", "/nodes", json=short), 400, "malformed-message", "32")
    key = Identity.fresh("alice").public_key
    taken = {"name": "alice", "public_key": key}
    assert_problem(federation.user("POST", "/nodes", json=taken), 409, "conflict", "a user")


def test_a_node_in_a_run_is_not_removed(federation):
    federation.with_model()
    run = federation.start()
    assert_problem(federation.user("DELETE", "/nodes/node-a"), 409, "conflict", run)


def queued(federation: Federation) -> list[str]:
    """Names of the tasks in the broker's queue, oldest first, which this takes out of it."""
    broker = federation.ctx.settings.broker_url.get_secret_value()
    with redis.Redis.from_url(broker) as server:
        messages = server.lrange(federation.ctx.jobs.queue, 0, -1)
        server.delete(federation.ctx.jobs.queue)
    return [json.loads(message)["headers"]["task"] for message in reversed(messages)]


def test_tasks_are_enqueued_and_sent_again_where_they_were_lost(federation):
    federation.with_model()
    run = federation.start(**PLAIN)
    federation.until("train")
    federation.turn()
    queued(federation)
    federation.nodes["node-a"].step()
    assert queued(federation) == ["rounds.absorb"]
    tasks.resend(federation.ctx)
    assert queued(federation) == ["rounds.absorb"]
    federation.run_out()
    assert "rounds.open" in (names := queued(federation))
    assert "rounds.finish" in names
    assert "rounds.clean" in names
    tasks.resend(federation.ctx)
    assert queued(federation) == []
    assert federation.show(run)["state"] == "finished"


def test_the_web_process_does_not_load_torch():
    code = (
        "import sys, services.model_owner.rounds.api, services.model_owner.rounds.node_api, "
        "services.model_owner.rounds.nodes_api, services.model_owner.registry.api, "
        "services.model_owner.rounds.tasks, services.model_owner.registry.tasks; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
