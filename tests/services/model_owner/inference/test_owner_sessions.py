"""Sessions over HTTP between three services: whose they are, when they end, what is answered."""

from __future__ import annotations

import dataclasses
import time
from datetime import timedelta
from itertools import count

import numpy as np
import pytest

from primia.chassis import migrate
from primia.learning.calibration import pack, probes
from primia.learning.images import normalise
from primia.learning.models import create_model
from primia.learning.spec import ModelSpec
from primia.messages.inference import Deal, ServedModels, Session
from primia.mpc.client import Client, PreparedOpening
from primia.mpc.compile import compile_model
from primia.mpc.material import Half
from primia.mpc.plan import Plan
from services.model_owner.inference import forward, models, serving, sessions
from services.model_owner.inference import store as owner_store
from services.model_owner.inference.worker import keep_once
from services.model_owner.tables import Base
from tests.support.contexts import Cast
from tests.support.encrypted import CLASSES, DEALER, NODE, OTHER, OWNER, SIZE, network
from tests.support.servers import wait_until

BINARY = {"Content-Type": "application/octet-stream"}
IMAGE = np.zeros((1, 1, SIZE, SIZE), np.float32)
_names = count()


@pytest.fixture(scope="module")
def grid(tmp_path_factory, broker_url):
    with network(Cast(tmp_path_factory.mktemp("grid")), broker_url, max_sessions=3) as made:
        made.servings = made.serve()
        yield made


class Party1:
    """A data node's requests, one by one."""

    def __init__(self, grid, node=NODE):
        self.grid, self.node = grid, node
        self.model = self.listed().models[0]
        self.served = next(plan for plan in self.model.plans if plan.result == "scores")

    def call(self, method, path, service=OWNER, **options):
        return self.grid.call(method, service, path, who=self.node, **options)

    def listed(self):
        return ServedModels.model_validate_json(self.call("GET", "/inference/models").content)

    def plan(self):
        card = self.model.card
        path = f"/inference/models/{card.name}/versions/{card.version}"
        plan = Plan.parse(self.call("GET", f"{path}/plan?result=scores").content)
        return plan, self.call("GET", f"{path}/opening?result=scores").content

    def deal(self):
        wanted = {"plan": self.served.plan, "digest": self.served.digest, "batch": 1}
        deal = self.call("POST", "/deals", DEALER, json=wanted).json()["id"]
        found = self.call("GET", f"/deals/{deal}?wait=20", DEALER)
        return Deal.model_validate_json(found.content)

    def ask(self, of_deal, **changes):
        own = {"plan": self.served.plan, "digest": self.served.digest}
        wanted = {**own, "deal": of_deal, "batch": 1}
        return self.call("POST", "/inference/sessions", json={**wanted, **changes})

    def ready(self, session_id):
        answer = self.call("GET", f"/inference/sessions/{session_id}?wait=20")
        return Session.model_validate_json(answer.content)

    def open(self):
        """A ready session and its client."""
        deal = self.deal()
        session = self.ready(self.ask(deal.id).json()["id"])
        assert session.state == "ready", session
        plan, opening = self.plan()
        data = self.call("GET", f"/deals/{deal.id}/half", DEALER).content
        assert self.call("POST", f"/deals/{deal.id}/received", DEALER).status_code == 200
        half = Half.open(data, plan, 1, 1, bytes.fromhex(deal.id))
        client = Client(PreparedOpening(plan, opening), half, bytes.fromhex(session.id))
        return session, client

    def put(self, session_id, path, body):
        return self.call("PUT", f"/inference/sessions/{session_id}/{path}", content=body)


@pytest.fixture
def party(grid):
    yield Party1(grid)
    for row in grid.sessions():
        if row.state in ("preparing", "ready"):
            Party1(grid, row.node).call("DELETE", f"/inference/sessions/{row.id}")
    wait_until(lambda: set(grid.deals().values()) <= {"spent"}, 5, what="the burning")


def test_the_migrated_schema_is_the_tables(grid):
    with grid[OWNER].ctx.db.engine.connect() as connection:
        tables = {"compiled_plans", "sessions"}
        drifted = [str(each) for each in migrate.drift(connection, Base.metadata)]
        assert [each for each in drifted if any(name in each for name in tables)] == []


def test_a_session_step_by_step(grid, party):
    session, client = party.open()
    body = client.offline()
    assert party.put(session.id, "offline", body).status_code == 200
    request = client.first(IMAGE)
    while request is not None:
        path = f"steps/{client.request_number}"
        answer = party.put(session.id, path, request)
        again = party.put(session.id, path, request)
        assert (answer.status_code, again.content) == (200, answer.content)
        other = party.put(session.id, path, request[:-1] + bytes([request[-1] ^ 1]))
        assert (other.status_code, other.json()["type"]) == (
            409,
            "urn:primia:problem:unexpected-message",
        )
        request = client.step(answer.content)
    assert client.result().shape == (1, 2)
    wait_until(lambda: party.ready(session.id).state == "done", 5, "the end of the session")
    assert party.call("DELETE", f"/inference/sessions/{session.id}").status_code == 204
    assert party.ready(session.id).state == "done"


def test_refused_steps_leave_the_session_as_it_was(grid, party):
    session, client = party.open()
    body = client.offline()
    for path, sent, status in [
        ("steps/0", body, 409),
        ("steps/7", b"", 409),
        ("offline", b"", 400),
        ("offline", body[:-1], 400),
        ("offline", bytes(len(body)), 400),
        ("offline", bytes(1 << 20), 413),
        ("steps/-1", b"", 422),
        ("steps/x", b"", 422),
        ("steps/100001", b"", 422),
    ]:
        answer = party.put(session.id, path, sent)
        assert answer.status_code == status, (path, answer.text)
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert party.put(session.id, "offline", body).status_code == 200


def test_a_foreign_session_does_not_exist(grid, party):
    session, client = party.open()
    other = Party1(grid, OTHER)
    path = f"/inference/sessions/{session.id}"
    assert other.put(session.id, "offline", client.offline()).status_code == 404
    assert other.call("GET", path).status_code == 404
    assert other.call("DELETE", path).status_code == 404
    assert grid.call("GET", OWNER, path, who="alice").status_code == 403
    assert grid.call("GET", OWNER, path, who="mallory").status_code == 401
    late = {"Authorization": f"Bearer {grid.cast.token(NODE, OWNER, -120)}"}
    assert grid.http.put(grid.urls[OWNER] + f"{path}/offline", headers=late).status_code == 401
    assert party.ready(session.id).state == "ready"


def test_a_session_needs_ones_own_deal(grid, party):
    deal = party.deal()
    other = Party1(grid, OTHER)
    stolen = other.ready(other.ask(deal.id).json()["id"])
    assert (stolen.state, "not for this session" in stolen.reason) == ("failed", True)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"plan": "0" * 32}, 404),
        ({"digest": "0" * 64}, 409),
        ({"batch": 0}, 422),
        ({"batch": 65}, 422),
        ({"deal": "x"}, 422),
        ({"colour": 1}, 422),
    ],
)
def test_session_requests_are_refused(party, changes, status):
    assert party.ask("0" * 32, **changes).status_code == status


def test_a_deal_has_one_session(party):
    deal = party.deal()
    first, second = party.ask(deal.id), party.ask(deal.id)
    assert first.json()["id"] == second.json()["id"]
    assert party.ask(deal.id, batch=2).status_code == 409
    assert party.ready(first.json()["id"]).state == "ready"


def test_another_batch_than_the_deals_fails(party):
    session = party.ready(party.ask(party.deal().id, batch=2).json()["id"])
    assert session.state == "failed"


def test_an_unknown_deal_fails(party):
    session = party.ready(party.ask("1" * 32).json()["id"])
    assert (session.state, "no such deal" in session.reason) == ("failed", True)


def test_too_many_sessions(grid, party):
    for _ in range(3):
        party.open()
    refused = party.ask("2" * 32)
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) > 0


def test_ending_a_session_burns_its_deal(grid, party):
    session, client = party.open()
    assert party.call("DELETE", f"/inference/sessions/{session.id}").status_code == 204
    assert party.put(session.id, "offline", client.offline()).status_code == 410
    wait_until(lambda: grid.deals()[session.deal] == "spent")


def test_a_session_is_looked_up_once_and_its_end_is_told_all_the_same(grid, party, monkeypatch):
    session, client = party.open()
    looked = []
    read = forward._read
    monkeypatch.setattr(forward, "_read", lambda *asked: looked.append(asked) or read(*asked))
    assert party.put(session.id, "offline", client.offline()).status_code == 200
    first = client.first(IMAGE)
    for _ in range(2):
        assert party.put(session.id, "steps/0", first).status_code == 200
    assert len(looked) == 1
    other = Party1(grid, OTHER)
    assert other.put(session.id, "steps/0", first).status_code == 404
    host = grid[OWNER].worker.extras[sessions.WORKER].host
    host._sessions[session.id].touched -= 1000
    keep_once(grid[OWNER].worker, host)
    answer = party.put(session.id, "steps/0", first)
    assert (answer.status_code, "too long" in answer.json()["detail"]) == (410, True)


@pytest.mark.parametrize("stale", [{"token": "another"}, {"host": "http://127.0.0.1:9"}])
def test_a_session_that_is_held_elsewhere_than_it_was_is_found(grid, party, stale):
    session, client = party.open()
    api = grid[OWNER].ctx
    held = forward.find(api, session.id, NODE)
    forward.known(api).put(session.id, NODE, dataclasses.replace(held, **stale))
    assert party.put(session.id, "offline", client.offline()).status_code == 200
    assert forward.known(api).get(session.id, NODE) == held


def test_the_targets_of_the_latest_sessions_are_kept():
    found = forward.Targets(2)
    for name in ("a", "b", "c"):
        found.put(name, "node", forward.Target(name, "node", "http://worker", "secret", 1))
    assert [found.get(name, "node") is not None for name in ("a", "b", "c")] == [False, True, True]
    assert found.get("c", "another") is None
    found.drop("c", "node")
    assert found.get("c", "node") is None
    assert "secret" not in repr(found) + repr(found.get("b", "node"))


def test_idle_sessions_expire(grid, party):
    session, client = party.open()
    host = grid[OWNER].worker.extras[sessions.WORKER].host
    host._sessions[session.id].touched -= 1000
    keep_once(grid[OWNER].worker, host)
    found = party.ready(session.id)
    assert (found.state, found.reason) == ("failed", "no step came for too long")
    answer = party.put(session.id, "offline", client.offline())
    assert (answer.status_code, "too long" in answer.json()["detail"]) == (410, True)


@pytest.mark.parametrize("moves", [True, False])
def test_a_long_upload_is_not_idle_as_long_as_it_moves(grid, party, monkeypatch, moves):
    session, client = party.open()
    host = grid[OWNER].worker.extras[sessions.WORKER].host
    monkeypatch.setattr(host, "_idle", 0.5)
    monkeypatch.setattr(forward, "_TOUCH_SECONDS", 0.1)
    monkeypatch.setattr(forward, "_TOUCH_BYTES", 100)
    body = client.offline()

    def pieces():
        size = len(body) // 8
        yield body[:size]
        for at in range(size, len(body), size):
            time.sleep(0.15 if moves else 0)
            host.sweep()
            yield body[at : at + size]
        if not moves:
            time.sleep(0.8)
            host.sweep()

    answer = party.put(session.id, "offline", pieces())
    assert answer.status_code == (200 if moves else 410)


def test_a_session_stays_as_long_as_its_half_arrives(grid, party, monkeypatch):
    monkeypatch.setattr(sessions, "_RENEW_SECONDS", 0)
    renewed = []
    after = grid[OWNER].worker.clock.after
    monkeypatch.setattr(
        grid[OWNER].worker.clock, "after", lambda each: renewed.append(each) or after(each)
    )
    party.open()
    assert sessions.PREPARE_SECONDS in renewed


def test_the_download_for_a_session_that_was_ended_is_broken_off(grid, party, monkeypatch):
    monkeypatch.setattr(sessions, "_RENEW_SECONDS", 0)
    piece, ended = sessions._Arriving.piece, []

    def end_first(arriving):
        sessions.broke(grid[OWNER].worker, arriving._id, "the data node ended it")
        ended.append(arriving._id)
        piece(arriving)

    monkeypatch.setattr(sessions._Arriving, "piece", end_first)
    before = len(grid[OWNER].jobs.ended)
    found = party.ready(party.ask(party.deal().id).json()["id"])
    assert (found.state, found.reason) == ("failed", "the data node ended it")
    both = {"inference.open", "inference.burn"}  # one may end before the other
    wait_until(lambda: both <= set(grid[OWNER].jobs.ended[before:]))
    assert len(ended) == 1


def test_rows_whose_worker_is_gone_end(grid, party):
    session, _ = party.open()
    host = grid[OWNER].worker.extras[sessions.WORKER].host
    held = host._sessions.pop(session.id)
    with grid[OWNER].ctx.db.session() as transaction:
        row = owner_store.session_row(transaction, session.id, lock=True)
        row.alive_until -= timedelta(seconds=120)
    sessions.watch(grid[OWNER].worker)
    found = party.ready(session.id)
    assert (found.state, "worker" in found.reason) == ("failed", True)
    held.owner.close()


def test_open_sessions_are_renewed(grid, party):
    session, _ = party.open()
    with grid[OWNER].ctx.db.session() as transaction:
        row = owner_store.session_row(transaction, session.id, lock=True)
        row.alive_until -= timedelta(seconds=50)
        before = row.alive_until
    worker = grid[OWNER].worker
    keep_once(worker, worker.extras[sessions.WORKER].host)
    with grid[OWNER].ctx.db.reading() as transaction:
        assert owner_store.session_row(transaction, session.id).alive_until > before


def test_a_step_while_it_is_prepared(grid, party):
    grid[OWNER].jobs.held.add("inference.open")
    session = party.ask(party.deal().id).json()
    assert party.put(session["id"], "offline", b"").status_code == 409
    grid[OWNER].jobs.held.clear()
    grid[OWNER].jobs.sweep()  # the lost message is sent again
    assert party.ready(session["id"]).state == "ready"


def test_the_token_is_sealed(grid, party):
    session, _ = party.open()
    host = grid[OWNER].worker.extras[sessions.WORKER].host
    token = host._sessions[session.id].token
    assert token.encode() not in grid.sessions()[-1].token


# -- what is served ----------------------------------------------------------------------------


def test_what_nodes_see_of_a_model(grid, party):
    plan, opening = party.plan()
    assert plan.digest().hex() == party.served.digest
    assert len(opening) == party.served.opening_bytes
    compiled = grid.compiled(party.served.plan)
    assert compiled.plan == plan
    secret = next(iter(compiled.weights.values())).weight.tobytes()
    assert secret not in opening
    base = "/inference/models/chest/versions"
    assert party.call("GET", f"{base}/2/plan?result=scores").status_code == 404
    assert party.call("GET", f"{base}/1/plan?result=label").status_code == 404
    assert party.call("GET", f"{base}/1/plan?result=x").status_code == 422
    assert grid.call("GET", OWNER, f"{base}/1/opening?result=scores").status_code == 403
    assert party.call("GET", "/models/chest/versions/1/weights").status_code in (403, 404)


def test_only_users_serve(grid, party):
    path = "/models/chest/versions/1/serve"
    assert party.call("POST", path, json={}).status_code == 403
    assert grid.call("POST", OWNER, path, json={"stock": -1}).status_code == 422
    assert grid.call("POST", OWNER, "/models/none/versions/1/serve", json={}).status_code == 404
    assert grid.call("GET", OWNER, "/models/none/versions/1/serve").status_code == 404
    assert grid.call("DELETE", OWNER, "/models/chest/versions/9/serve").status_code == 404


def test_serving_again_renews_the_stock_and_keeps_the_plan(grid):
    before = grid.servings[0]["plan"]
    found = grid.ask_serving(stock=0, batch=2)
    assert (found[0]["plan"], found[0]["batch"]) == (before, 2)
    wait_until(lambda: grid.call("GET", DEALER, f"/plans/{before}", who=OWNER).json()["batch"] == 2)
    grid.ask_serving(stock=0, batch=1)


def test_a_model_that_cannot_be_compiled_is_refused_by_name(grid):
    name = f"odd{next(_names)}"
    grid.register(name, norm="group")
    found = grid.ask_serving(name)
    assert found[0]["state"] == "failed"
    assert "'1' (GroupNorm)" in found[0]["reason"]
    assert "Supported: Conv2d" in found[0]["reason"]
    assert grid.call("GET", OWNER, f"/models/{name}/versions/1").json()["state"] == "ready"


def test_a_model_without_norms_is_measured(grid):
    """On probes at first, then on the owner's own images."""
    name = f"lenet{next(_names)}"
    grid.register(name, architecture="lenet")
    spec = ModelSpec(architecture="lenet", classes=CLASSES, channels=1, image_size=SIZE, seed=5)
    check_measured_on(grid, name, spec, probes(spec))
    path = f"/models/{name}/versions/1"
    dim = np.full((2, 1, SIZE, SIZE), 128, np.uint8)
    sent = grid.call("PUT", OWNER, f"{path}/calibration", content=pack(dim), headers=BINARY)
    assert sent.status_code == 204, sent.text
    assert grid.call("DELETE", OWNER, f"{path}/serve").status_code == 204
    check_measured_on(grid, name, spec, normalise(dim, spec.mean, spec.std))


def check_measured_on(grid, name, spec, images):
    served = grid.ask_serving(name)[0]
    assert served["state"] == "serving", served
    module = create_model(spec).eval()
    wanted = compile_model(module, spec.input_shape, calibration=images)
    assert grid.compiled(served["plan"]).to_bytes() == wanted.to_bytes()


def test_after_a_failure_a_new_plan_with_a_new_mask(grid, monkeypatch):
    from primia.errors import UnsupportedModel
    from services.model_owner.inference import compiling

    name = f"odd{next(_names)}"
    with monkeypatch.context() as patch:

        def refuse(*_, **__):
            raise UnsupportedModel("Not now.")

        patch.setattr(compiling, "compile_model", refuse)
        failed = grid.serve(name)[0]
    served = grid.ask_serving(name)[0]
    assert (failed["state"], served["state"]) == ("failed", "serving")
    assert failed["plan"] != served["plan"]


def test_two_versions_with_the_same_plan_have_unrelated_openings(grid):
    """E - E' must not be W - W'."""
    name = f"twin{next(_names)}"
    first, second = grid.servings[0], grid.serve(name)[0]
    assert first["digest"] == second["digest"]
    files = grid[OWNER].ctx.files
    openings = [models.opening_path(files, each["plan"]).read_bytes() for each in (first, second)]
    words = [np.frombuffer(each[40:], "<u4") for each in openings]
    weights = [
        np.concatenate([w.weight.ravel() for w in grid.compiled(each["plan"]).weights.values()])
        for each in (first, second)
    ]
    leaked = (words[0] - words[1]) == (weights[0] - weights[1]).view(np.uint32)
    assert leaked.mean() < 0.01


def test_withdrawing(grid):
    name = f"gone{next(_names)}"
    served = grid.serve(name)[0]
    path = f"/models/{name}/versions/1/serve"
    assert grid.call("DELETE", OWNER, path).status_code == 204
    assert grid.call("GET", OWNER, path).json()["servings"][0]["state"] == "withdrawn"
    listed = Party1(grid).call("GET", "/inference/models").json()["models"]
    assert name not in [each["card"]["name"] for each in listed]
    weights = models.weights_path(grid[OWNER].ctx.files, served["plan"])
    wait_until(lambda: not weights.exists())
    plan = grid.call("GET", DEALER, f"/plans/{served['plan']}", who=OWNER).json()
    assert plan["active"] is False
    again = grid.ask_serving(name)[0]
    assert again["plan"] != served["plan"]


def test_a_plan_of_another_release_is_not_listed_and_hides_no_other(grid):
    name = f"old{next(_names)}"
    plan = grid.serve(name)[0]["plan"]
    with grid[OWNER].ctx.db.session() as session:
        row = owner_store.serving(session, plan)
        row.document, document = '{"version":1}', row.document
    listed = [each.card.name for each in Party1(grid).listed().models]
    assert listed
    assert name not in listed
    with grid[OWNER].ctx.db.session() as session:
        owner_store.serving(session, plan).document = document
    assert name in [each.card.name for each in Party1(grid).listed().models]


def test_while_the_dealer_is_away_the_row_waits(grid, monkeypatch):
    from primia.errors import PeerUnavailable

    def away(*_):
        raise PeerUnavailable("crypto-provider cannot be reached.")

    name = f"late{next(_names)}"
    model = {
        "name": name,
        "architecture": "small_cnn",
        "classes": ["a", "b"],
        "channels": 1,
        "image_size": SIZE,
    }
    grid.call("POST", OWNER, "/models", json=model)
    base = f"/models/{name}/versions/1"
    wait_until(lambda: grid.call("GET", OWNER, base).json()["state"] == "ready")
    with monkeypatch.context() as patch:
        patch.setattr(serving, "_offer", away)
        grid.call("POST", OWNER, f"{base}/serve", json={"results": ["scores"]})
        row = lambda: grid.call("GET", OWNER, f"{base}/serve").json()["servings"][0]  # noqa: E731
        wait_until(lambda: "tried again" in row()["reason"])
        assert row()["state"] == "compiling"
    grid[OWNER].jobs.sweep()
    wait_until(lambda: row()["state"] == "serving")
    assert row()["reason"] == ""


def test_every_route_says_what_it_does(grid):
    document = grid.call("GET", OWNER, "/openapi.json").json()
    paths = {p: m for p, m in document["paths"].items() if "inference" in p or "serve" in p}
    assert len(paths) >= 8
    for path, methods in paths.items():
        for method, operation in methods.items():
            assert operation.get("summary"), (method, path)
            assert "401" in operation["responses"], (method, path)
