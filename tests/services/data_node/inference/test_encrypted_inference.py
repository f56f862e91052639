"""Whole encrypted inferences over real HTTP, held against the oracle and the plain model."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import pytest

from primia.learning.calibration import pack
from primia.learning.images import decode, normalise
from primia.mpc import oracle
from primia.mpc.costs import AtHand, session_bytes
from primia.mpc.material import half_size
from services.data_node.inference import planner, run
from services.data_node.inference import store as node_store
from services.data_node.inference import tasks as node_tasks
from services.data_node.inference.served import served_models
from services.model_owner.inference import sessions as owner_sessions
from services.model_owner.inference.domain import SessionState
from tests.support.contexts import Cast
from tests.support.encrypted import CLASSES, DEALER, NODE, OTHER, OWNER, SIZE, network, picture
from tests.support.servers import wait_until

IMAGES = [picture(seed) for seed in range(3)]
WAYS = ("fss calibrated", "fss exact", "securenn exact")


@pytest.fixture(scope="module")
def grid(tmp_path_factory, broker_url):
    with network(Cast(tmp_path_factory.mktemp("grid")), broker_url) as made:
        made.cast.root.joinpath("images").mkdir()
        made.servings = made.serve(results=("scores", "label"))
        assert [each["state"] for each in made.servings] == ["serving"] * 2, made.servings
        yield made


@pytest.fixture
def compiled(grid):
    plans = {each["result"]: each["plan"] for each in grid.servings}
    return grid.compiled(plans["scores"])


def expected(compiled, images):
    """Scores (N, classes) of the plan in plain integers."""
    pixels = np.stack([decode(data, SIZE, 1) for data in images])
    encoded = oracle.encode(compiled.plan, normalise(pixels, 0.5, 0.25))
    found = oracle.evaluate(compiled, encoded)
    return oracle.decode_scores(compiled.plan, found.scores)


def row(grid, inference_id):
    with grid[NODE].ctx.db.reading() as session:
        return node_store.find(session, inference_id)


def test_scores_are_the_oracles(grid, compiled):
    status, result = grid.classify(*IMAGES, result="scores")
    wanted = expected(compiled, IMAGES)
    found = np.array([[each["scores"][name] for name in CLASSES] for each in result["predictions"]])
    np.testing.assert_allclose(found, wanted, atol=0.01)
    assert [each["image"] for each in result["predictions"]] == [f"image{i}.png" for i in range(3)]
    for prediction, scores in zip(result["predictions"], wanted, strict=True):
        assert prediction["label"] == CLASSES[int(scores.argmax())]
    assert (status["attempts"], status["step"]) == (1, compiled.plan.requests)


def test_the_cost_is_what_the_plan_says(grid, compiled):
    status, _ = grid.classify(IMAGES[0], result="scores")
    bill = compiled.plan.bill(1)
    frames = 36 * (2 * compiled.plan.requests)
    cost = status["cost"]
    assert cost["online_bytes"] == bill.request_bytes + bill.response_bytes + frames
    assert cost["offline_bytes"] == bill.offline_bytes + 36 + 48
    assert cost["material_bytes"] >= half_size(compiled.plan, 1, 1)
    assert all(cost[f"{part}_seconds"] > 0 for part in ("material", "offline", "online"))


def test_a_label_alone_comes_without_scores(grid, compiled):
    _, result = grid.classify(*IMAGES[:2])
    wanted = [CLASSES[int(scores.argmax())] for scores in expected(compiled, IMAGES[:2])]
    assert [each["label"] for each in result["predictions"]] == wanted
    assert all(each["scores"] is None for each in result["predictions"])


def test_the_way_is_chosen_among_what_the_version_is_served_as(grid):
    """At first as windows alone: neither the exact plan nor SecureNN comes into question."""
    grid.register("windows")
    pixels = pack(np.stack([decode(data, SIZE, 1) for data in IMAGES * 4]))
    path, headers = "/models/windows/versions/1", {"Content-Type": "application/octet-stream"}
    sent = grid.call("PUT", OWNER, f"{path}/calibration", content=pixels, headers=headers)
    assert sent.status_code == 204, sent.text
    asked = {"model": "windows", "result": "scores", "protocol": "auto", "accuracy": "calibrated"}
    ways = []
    for accuracies in (("calibrated",), ("calibrated", "exact")):
        grid.ask_serving("windows", accuracies=accuracies)
        answer = grid.infer(IMAGES[0], **asked)
        assert answer.status_code == 202, answer.text
        status = grid.ended(answer.json()["id"])
        assert (status["state"], status["version"]) == ("done", 1), status
        ways.append({way for way in WAYS if way in status["chosen"]})
    assert ways == [{"fss calibrated"}, set(WAYS)]


def test_an_opening_is_expected_once(grid):
    """Seconds of a version's first inference by FSS count it; those of the next do not."""
    grid.register("once")
    grid.ask_serving("once")
    node = grid[NODE].ctx
    (model,) = [each for each in served_models(node).models if each.card.name == "once"]
    (plan,) = model.plans
    at_hand = []
    for _ in range(2):
        at_hand.append(planner.offer(node, model, plan, 1).fss)
        grid.classify(IMAGES[0], model="once", result="scores")
    assert at_hand == [AtHand(opening=False), AtHand(opening=True)]


def test_nothing_is_left_behind(grid):
    status, _ = grid.classify(IMAGES[0])
    assert row(grid, status["id"]).pixels is None
    assert set(grid.deals().values()) <= {"spent"}
    for name, folder in ((NODE, "halves"), (OWNER, "sessions"), (DEALER, "deals")):
        assert list(grid[name].ctx.files.path(folder, "x").parent.iterdir()) == []


def test_the_result_is_sealed(grid):
    status, result = grid.classify(IMAGES[0], result="scores")
    stored = row(grid, status["id"]).outcome
    assert result["predictions"][0]["label"].encode() not in stored


def test_images_of_a_data_set(grid):
    root = grid.cast.root / "images" / "clinic"
    for number, label in enumerate(CLASSES):
        (root / label).mkdir(parents=True)
        (root / label / f"person{number}_{label}_1.png").write_bytes(IMAGES[number])
    asked = {"name": "clinic", "path": str(root)}
    assert grid.call("POST", NODE, "/datasets", json=asked).status_code == 202
    wait_until(lambda: grid.call("GET", NODE, "/datasets/clinic").json()["state"] == "ready")
    path = "normal/person0_normal_1.png"
    wanted = {"model": "chest", "dataset": "clinic", "images": [path]}
    answer = grid.call("POST", NODE, "/inference", json=wanted)
    status = grid.ended(answer.json()["id"])
    assert (status["state"], status["images"]) == ("done", [path])
    for images, code in ((["../secret.png"], 422), ([], 422), ([path] * 17, 422)):
        refused = grid.call("POST", NODE, "/inference", json={**wanted, "images": images})
        assert refused.status_code == code


def test_events_are_replayed_to_the_end(grid):
    status, _ = grid.classify(IMAGES[0])
    answer = grid.call("GET", NODE, f"/inference/{status['id']}/events")
    kinds = [line[7:] for line in answer.text.splitlines() if line.startswith("event: ")]
    assert kinds[:2] == ["state", "attempt"]
    assert kinds[-1] == "state"
    assert "progress" in kinds
    ids = [int(line[4:]) for line in answer.text.splitlines() if line.startswith("id: ")]
    headers = {"Last-Event-ID": str(ids[-2])}
    rest = grid.call("GET", NODE, f"/inference/{status['id']}/events", headers=headers)
    assert rest.text.count("event: ") == 1


def test_a_stock_is_used(grid):
    grid.ask_serving(stock=1, results=("label",))
    wait_until(lambda: "ready" in grid.deals().values(), what="the stock")
    grid.classify(IMAGES[0])
    wait_until(lambda: "ready" in grid.deals().values(), what="the refill")
    grid.ask_serving(stock=0, results=("label",))
    plan = {each["result"]: each["plan"] for each in grid.servings}["label"]
    from services.crypto_provider.material import store as deal_store
    from services.crypto_provider.material.domain import Event

    with grid[DEALER].ctx.db.session() as session:
        for deal_id, state in grid.deals().items():
            if state == "ready":
                deal = deal_store.deal(session, deal_id, lock=True)
                assert deal.plan == plan
                deal.advance(Event.BURN)


# -- refused before anything is spent ----------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "fields", "status", "word"),
    [
        ([b"no image"], {}, 422, "image0.png"),
        ([IMAGES[0], IMAGES[1][:200]], {}, 422, "image1.png"),
        ([], {}, 422, "form"),
        ([IMAGES[0]], {"model": "unknown"}, 404, "unknown"),
        ([IMAGES[0]], {"version": "7"}, 404, "version 7"),
        ([IMAGES[0]], {"version": "x"}, 422, "version"),
        ([IMAGES[0]], {"result": "weights"}, 422, "result"),
        ([IMAGES[0]], {"colour": "red"}, 422, "colour"),
        ([IMAGES[0]] * 17, {}, 422, "form"),
    ],
)
def test_bad_requests_spend_nothing(grid, images, fields, status, word):
    before = grid.deals()
    answer = grid.infer(*images, **fields)
    assert (answer.status_code, word in answer.json()["detail"]) == (status, True), answer.text
    assert grid.deals() == before


def test_bodies_of_other_kinds_are_refused(grid):
    for options in ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, {"json": [1]}):
        assert grid.call("POST", NODE, "/inference", **options).status_code == 422


def test_a_large_image_is_refused_while_it_is_read(grid):
    limit = grid[NODE].ctx.settings.max_image_bytes
    answer = grid.infer(b"\0" * (limit + 1))
    assert answer.status_code == 413


def test_only_this_nodes_users_see_results(grid):
    status, _ = grid.classify(IMAGES[0])
    path = f"/inference/{status['id']}/result"
    assert grid.call("GET", NODE, path, who=OWNER).status_code == 403
    assert grid.call("GET", NODE, path, who="mallory").status_code == 401
    headers = grid.cast.headers("alice", OTHER)
    assert grid.http.get(grid.urls[NODE] + path, headers=headers).status_code == 401
    assert grid.call("GET", OTHER, path).status_code == 404


def test_the_owner_is_not_there(grid, monkeypatch):
    monkeypatch.setattr(run.served, "served_models", run.served.served_models)
    node = grid[NODE].ctx
    object.__setattr__(node.settings, "owner_url", "http://127.0.0.1:9")
    try:
        assert grid.infer(IMAGES[0]).status_code == 503
    finally:
        object.__setattr__(node.settings, "owner_url", grid.urls[OWNER])


# -- what breaks on the way --------------------------------------------------------------------


def hosts(grid):
    return grid[OWNER].worker.extras[owner_sessions.WORKER].host


def interrupt(monkeypatch, at, action):
    """Run ``action`` once, before step ``at`` of the first attempt is sent."""
    done = []
    step = run.Client.step
    first, offline = run.Client.first, run.Client.offline

    def reached(number):
        if number == at and not done:
            done.append(number)
            action()

    def wrapped_offline(client):
        reached(-1)
        return offline(client)

    def wrapped_first(client, images):
        reached(0)
        return first(client, images)

    def wrapped_step(client, response):
        reached(client.request_number + 1)
        return step(client, response)

    monkeypatch.setattr(run.Client, "offline", wrapped_offline)
    monkeypatch.setattr(run.Client, "first", wrapped_first)
    monkeypatch.setattr(run.Client, "step", wrapped_step)
    return done


@pytest.mark.parametrize("at", [-1, 0, 1, 2, 4, 6, 7])
def test_the_owners_worker_dies_at_a_step(grid, compiled, monkeypatch, at):
    def kill():
        wait_until(lambda: grid.sessions()[-1].state == "ready")
        with hosts(grid)._lock:
            hosts(grid)._sessions.clear()

    known = set(grid.deals())
    done = interrupt(monkeypatch, at, kill)
    status, result = grid.classify(IMAGES[0], result="scores")
    assert done == [at]
    assert status["attempts"] == 2
    assert [each.state for each in grid.sessions()[-2:]] == ["failed", "done"]
    used = {deal: state for deal, state in grid.deals().items() if deal not in known}
    assert list(used.values()) == ["spent"] * 2
    found = [result["predictions"][0]["scores"][name] for name in CLASSES]
    np.testing.assert_allclose(found, expected(compiled, IMAGES[:1])[0], atol=0.01)


@pytest.mark.parametrize("at", [-1, 0, 3, 7])
def test_the_nodes_worker_dies_at_a_step(grid, monkeypatch, at):
    def kill():
        raise KeyboardInterrupt

    known = set(grid.deals())
    done = interrupt(monkeypatch, at, kill)
    inference = grid.infer(IMAGES[0]).json()["id"]
    wait_until(lambda: done == [at])
    time.sleep(0.1)
    grid[NODE].jobs.sweep()
    status = grid.ended(inference)
    assert (status["state"], status["attempts"]) == ("done", 2)
    used = {deal: state for deal, state in grid.deals().items() if deal not in known}
    assert list(used.values()) == ["spent"] * 2
    assert [each.state for each in grid.sessions()[-2:]] == ["failed", "done"]


def test_what_breaks_each_time_is_given_up_with_the_reason(grid, monkeypatch):
    def damaged(*_):
        raise run.UnexpectedMessage("The half is damaged.")

    monkeypatch.setattr(run.material, "fetch", damaged)
    known = set(grid.deals())
    status = grid.ended(grid.infer(IMAGES[0]).json()["id"])
    assert (status["state"], status["attempts"]) == ("failed", 4)
    assert "4 attempts" in status["reason"]
    assert "damaged" in status["reason"]
    used = {deal: state for deal, state in grid.deals().items() if deal not in known}
    assert list(used.values()) == ["spent"] * 4
    assert row(grid, status["id"]).pixels is None
    refused = grid.call("GET", NODE, f"/inference/{status['id']}/result")
    assert (refused.status_code, "damaged" in refused.json()["detail"]) == (409, True)


def test_an_unexpected_failure_here_is_not_tried_again(grid, monkeypatch):
    def broken(*_):
        raise ValueError("secret 1234")

    monkeypatch.setattr(run, "_online", broken)
    status = grid.ended(grid.infer(IMAGES[0]).json()["id"])
    assert (status["state"], status["attempts"]) == ("failed", 1)
    assert "1234" not in status["reason"]
    wait_until(lambda: set(grid.deals().values()) == {"spent"})


def test_cancelling_stops_and_burns(grid, monkeypatch):
    inference = []

    def cancel():
        answer = grid.call("DELETE", NODE, f"/inference/{inference[0]}")
        assert answer.status_code == 204

    interrupt(monkeypatch, 2, cancel)
    grid[NODE].jobs.held.add("inference.run")
    inference.append(grid.infer(IMAGES[0]).json()["id"])
    grid[NODE].jobs.held.clear()
    grid[NODE].jobs.sweep()
    status = grid.ended(inference[0])
    assert status["state"] == "cancelled"
    wait_until(lambda: set(grid.deals().values()) == {"spent"}, what="the burning")
    wait_until(lambda: grid.sessions()[-1].state == SessionState.FAILED.value)
    assert grid.call("DELETE", NODE, f"/inference/{inference[0]}").status_code == 204
    assert grid.call("GET", NODE, f"/inference/{inference[0]}").status_code == 404


def test_a_worker_that_was_taken_for_dead_changes_nothing_any_more(grid, monkeypatch):
    """Another has taken its row over: it neither reports, nor burns what may be the other's."""
    named = []

    def take_over():
        with grid[NODE].ctx.db.session() as session:
            found = session.query(node_store.Inference).filter_by(state="running").one()
            named.append((found.id, found.deal, found.session))
            found.lease_owner, found.lease_until = "another", grid[NODE].ctx.clock.after(60)

    interrupt(monkeypatch, 3, take_over)
    grid[NODE].jobs.ended.clear()
    grid.infer(IMAGES[0])
    wait_until(lambda: named, what="the session's middle")
    inference, deal, session_id = named[0]
    path = f"/inference/sessions/{session_id}"
    wait_until(lambda: "inference.run" in grid[NODE].jobs.ended, what="the first worker's end")
    kept = row(grid, inference)
    assert (kept.state, kept.deal, kept.session) == ("running", deal, session_id)
    assert grid.call("GET", OWNER, path, who=NODE).json()["state"] in ("ready", "done")
    with grid[NODE].ctx.db.session() as session:
        found = node_store.find(session, inference, lock=True)
        found.lease_until = None
    grid[NODE].jobs.sweep()
    status = grid.ended(inference)
    assert (status["state"], status["attempts"]) == ("done", 2)


@pytest.mark.parametrize("away", [OWNER, DEALER])
def test_what_could_not_be_burned_is_burned_later(grid, monkeypatch, away):
    known = set(grid.deals())
    monkeypatch.setattr(node_tasks, "MAX_ATTEMPTS", 1)
    unreachable = {"value": False}
    original = node_tasks.PeerClient.delete

    def delete(peer, path):
        if unreachable["value"] and peer.name == away:
            raise node_tasks.PeerUnavailable(f"{peer.name} cannot be reached.")
        return original(peer, path)

    def broken():
        unreachable["value"] = True
        raise run.UnexpectedMessage("It broke.")

    monkeypatch.setattr(node_tasks.PeerClient, "delete", delete)
    interrupt(monkeypatch, 2, broken)
    inference = grid.infer(IMAGES[0]).json()["id"]
    assert grid.ended(inference)["state"] == "failed"
    kept = row(grid, inference)
    assert (kept.deal is not None, kept.session is not None) == (away == DEALER, away == OWNER)
    unreachable["value"] = False

    def burned():
        grid[NODE].jobs.sweep()  # which passes over a row whose worker is just letting go of it
        return row(grid, inference).deal is None and row(grid, inference).session is None

    wait_until(burned, what="the burning")
    assert {state for deal, state in grid.deals().items() if deal not in known} == {"spent"}
    assert grid.sessions()[-1].state == "failed"


def test_a_lost_message_is_made_up_for(grid):
    grid[NODE].jobs.held.add("inference.run")
    inference = grid.infer(IMAGES[0]).json()["id"]
    grid[NODE].jobs.held.clear()
    assert grid.status(inference)["state"] == "queued"
    grid[NODE].jobs.sweep()
    assert grid.ended(inference)["state"] == "done"


def test_the_opening_is_fetched_once_and_checked(grid):
    ctx = grid[NODE].worker
    folder = ctx.files.path("openings", "x").parent
    for file in folder.iterdir():
        file.write_bytes(bytes(file.stat().st_size))
    ctx.extras.pop("inference.openings", None)
    status, _ = grid.classify(IMAGES[0])
    assert status["attempts"] == 2  # the damaged file was thrown away, then fetched again
    again, _ = grid.classify(IMAGES[0])
    assert again["cost"]["material_bytes"] < status["cost"]["material_bytes"]


@pytest.mark.parametrize(("where", "attempts"), [(NODE, 1), (OWNER, 4), (DEALER, 4)])
def test_a_full_disk_fails_the_job_with_the_reason_and_burns(grid, monkeypatch, where, attempts):
    """At this node one attempt is enough to know; elsewhere space may come back."""
    known = set(grid.deals())
    monkeypatch.setattr(grid[where].worker.files, "_min_free", 1 << 60)
    status = grid.ended(grid.infer(IMAGES[0]).json()["id"])
    assert (status["state"], status["attempts"]) == ("failed", attempts)
    assert "are free beside the reserve" in status["reason"]
    monkeypatch.undo()
    wait_until(
        lambda: {s for d, s in grid.deals().items() if d not in known} <= {"spent", "failed"},
        what="the burning",
    )
    wait_until(lambda: "ready" not in {each.state for each in grid.sessions()}, what="the end")
    assert grid.classify(IMAGES[0])[0]["attempts"] == 1


def test_a_dealer_without_room_is_waited_for_and_the_user_told(grid, monkeypatch):
    monkeypatch.setattr(grid[DEALER].ctx.files, "_min_free", 1 << 60)
    inference = grid.infer(IMAGES[0]).json()["id"]
    wait_until(lambda: "no room" in grid.status(inference)["reason"], what="the reason")
    assert grid.status(inference)["state"] == "running"
    monkeypatch.undo()
    status = grid.ended(inference)
    assert (status["state"], status["attempts"], status["reason"]) == ("done", 1, "")


def test_the_list_is_newest_first(grid):
    found = grid.call("GET", NODE, "/inference?limit=2").json()["inferences"]
    assert len(found) == 2
    assert found[0]["created"] >= found[1]["created"]
    assert (
        grid.call("GET", NODE, "/inference/models").json()["models"][0]["card"]["name"] == "chest"
    )


# -- memory -----------------------------------------------------------------------------------


@contextlib.contextmanager
def allowed(grid, name, size):
    settings = grid[name].ctx.settings
    before = settings.max_session_bytes
    object.__setattr__(settings, "max_session_bytes", size)
    try:
        yield
    finally:
        object.__setattr__(settings, "max_session_bytes", before)


@pytest.mark.parametrize(
    ("party", "told"), [(NODE, "allowed here"), (OWNER, "The model owner has")]
)
def test_a_batch_that_a_party_has_no_memory_for_is_refused_before_anything_is_dealt(
    grid, compiled, party, told
):
    before = grid.deals()
    with allowed(grid, party, session_bytes(compiled.plan, 2)):
        refused = grid.infer(*IMAGES, result="scores")
        assert refused.status_code == 422
        assert told in refused.json()["detail"]
        assert "PRIMIA_MAX_SESSION_BYTES" in refused.json()["hint"]
        assert grid.deals() == before
        grid.classify(*IMAGES[:2], result="scores")


def test_a_session_over_the_owners_memory_is_refused(grid, compiled):
    """Whatever the node has read of what the owner serves."""
    plan = next(each for each in grid.servings if each["result"] == "scores")
    wanted = {"plan": plan["plan"], "digest": plan["digest"], "deal": 16 * "c3", "batch": 3}
    with allowed(grid, OWNER, session_bytes(compiled.plan, 2)):
        refused = grid.call("POST", OWNER, "/inference/sessions", who=NODE, json=wanted)
    assert refused.status_code == 422
    assert "batch of 3" in refused.json()["detail"]
