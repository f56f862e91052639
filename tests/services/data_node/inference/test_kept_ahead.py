"""Both halves and the offline message kept ahead: an image finds it; what breaks is burned."""

from __future__ import annotations

import itertools
import os
import time
from datetime import timedelta

import numpy as np
import pytest

from primia.chassis.peers import PeerClient
from primia.errors import PeerUnavailable
from primia.learning.images import decode, normalise
from primia.mpc import oracle
from services.data_node.inference import kept, prefetch
from services.model_owner.inference import kept as owner_kept
from services.model_owner.inference import sessions, tasks
from tests.support.contexts import Cast
from tests.support.encrypted import CLASSES, NODE, OWNER, SIZE, network, picture
from tests.support.servers import wait_until

_seeds = itertools.count(10)


@pytest.fixture(scope="module")
def grid(tmp_path_factory, broker_url):
    cast = Cast(tmp_path_factory.mktemp("grid"))
    with network(cast, broker_url, node_settings={"prefetch": 1}) as made:
        made.servings = made.serve(results=("scores",))
        yield made


def rows(grid):
    with grid[NODE].worker.db.reading() as session:
        return session.query(kept.PrefetchedDeal).all()


def stock(grid):
    """One deal is kept, by both; its row."""
    prefetch.refill(grid[NODE].worker)
    wait_until(lambda: kept.counts(grid[NODE].worker).get("kept") == 1, 60, "the prefetch")
    return next(row for row in rows(grid) if row.state == "kept")


@pytest.fixture
def row(grid):
    yield stock(grid)
    for each in rows(grid):
        kept.drop(grid[NODE].worker, each.id)
    wait_until(lambda: owner_files(grid) == [], what="the burning")
    assert set(grid.deals().values()) <= {"spent"}


def owner_files(grid):
    return sorted(
        path.name for path in grid[OWNER].ctx.files.path("sessions", "x").parent.iterdir()
    )


def session_of(grid, row):
    return next(each for each in grid.sessions() if each.id == row.session)


def check(grid, attempts=1):
    """One image is classified as the oracle says."""
    image = picture(next(_seeds))
    grid[NODE].jobs.held.add(prefetch.FETCH)  # no replacement meanwhile
    status, result = grid.classify(image, result="scores")
    wait_until(lambda: kept.counts(grid[NODE].worker).get("fetching") == 1, what="the replacement")
    grid[NODE].jobs.held.clear()
    assert status["attempts"] == attempts, status
    compiled = grid.compiled(grid.servings[0]["plan"])
    pixels = normalise(decode(image, SIZE, 1)[None], 0.5, 0.25)
    found = oracle.evaluate(compiled, oracle.encode(compiled.plan, pixels))
    wanted = oracle.decode_scores(compiled.plan, found.scores)[0]
    scores = [result["predictions"][0]["scores"][name] for name in CLASSES]
    np.testing.assert_allclose(scores, wanted, atol=0.01)
    return status


def test_an_image_asks_the_dealer_for_nothing(grid, row, monkeypatch):
    assert grid.deals()[row.deal] == "spent"  # both have their halves
    assert owner_files(grid) == [f"{row.session}.half", f"{row.session}.offline"]
    held = [kept.held(grid[NODE].ctx, row.plan, batch) for batch in (1, 2)]
    assert held == [(True, True), (False, False)]
    request, asked = PeerClient.request, []

    def watched(client, method, path, **options):
        asked.append((client.name, path))
        return request(client, method, path, **options)

    monkeypatch.setattr(PeerClient, "request", watched)
    monkeypatch.setattr(PeerClient, "download", lambda *_, **__: pytest.fail("a download"))
    cost = check(grid)["cost"]
    assert {name for name, _ in asked} == {OWNER}
    assert not [path for _, path in asked if path.endswith("/offline")]
    assert (cost["material_bytes"], cost["offline_bytes"]) == (0, 0)
    assert owner_files(grid) == []


def test_what_is_kept_is_a_secret_and_used_once(grid, row):
    share = grid[NODE].ctx.secrets.open(row.share, kept.share_purpose(row.id))
    assert len(share) == 4 * len(CLASSES)
    assert share not in row.share
    check(grid)
    found = next(each for each in rows(grid) if each.id == row.id)
    assert (found.state, found.share) == ("taken", None)
    ended = session_of(grid, row)
    assert ended.state == "done"
    wanted = {"plan": row.plan, "digest": ended_digest(grid), "deal": row.deal, "batch": 1}
    for ahead in (True, False):
        body = {**wanted, "ahead": ahead}
        again = grid.call("POST", OWNER, "/inference/sessions", who=NODE, json=body).json()
        assert (again["id"], again["state"]) == (row.session, "done")


def ended_digest(grid):
    return grid.servings[0]["digest"]


def test_the_owners_worker_may_be_restarted_meanwhile(grid, row):
    owner = grid[OWNER]
    owner.service.worker_stop(owner.worker)
    owner.service.worker_start(owner.worker)
    check(grid)
    assert session_of(grid, row).state == "done"


@pytest.mark.parametrize("name", ["half", "offline"])
def test_what_is_gone_at_the_owner_is_burned_and_the_image_classified_all_the_same(grid, row, name):
    grid[OWNER].ctx.files.path("sessions", f"{row.session}.{name}").unlink()
    check(grid, attempts=2)
    assert session_of(grid, row).state == "failed"


def test_damage_of_the_kept_message_is_found(grid, row):
    path = grid[OWNER].ctx.files.path("sessions", f"{row.session}.offline")
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    check(grid, attempts=2)
    assert "damaged" in session_of(grid, row).reason


def test_a_worker_that_dies_while_it_opens_burns_what_was_kept(grid, row, monkeypatch):
    """The files are gone before the session is there: it can't be opened a second time."""
    worker = grid[OWNER].worker
    host = worker.extras[sessions.WORKER].host
    opened = []

    def dies(*_):
        opened.append(owner_files(grid))
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(host, "open", dies)
    inference = grid.infer(picture(1), result="scores").json()["id"]
    wait_until(lambda: opened == [[]] and session_of(grid, row).lease_owner is None)
    grid[OWNER].jobs.sweep()
    status = grid.ended(inference)
    assert (status["state"], status["attempts"]) == ("done", 2)
    assert session_of(grid, row).state == "failed"


def test_a_node_that_dies_before_it_has_noted_its_share_sends_the_same_again(grid, monkeypatch):
    worker, seals = grid[NODE].worker, []
    seal = worker.secrets.seal

    def dies_once(value, purpose):
        seals.append(value)
        if len(seals) == 1:
            raise KeyboardInterrupt
        return seal(value, purpose)

    with monkeypatch.context() as patch:
        patch.setattr(worker.secrets, "seal", dies_once)
        prefetch.refill(worker)
        wait_until(lambda: len(seals) == 1)
        wait_until(lambda: all(row.lease_owner is None for row in rows(grid)))
        assert kept.counts(worker)["waiting"] == 1
        prefetch.refill(worker)
        wait_until(lambda: kept.counts(worker).get("kept") == 1)
    assert seals[0] == seals[1]
    check(grid)


def test_another_message_for_the_same_session_is_refused(grid, row):
    path = f"/inference/sessions/{row.session}/offline"
    file = grid[OWNER].ctx.files.path("sessions", f"{row.session}.offline")
    body = file.read_bytes()
    other = body[:-1] + bytes([body[-1] ^ 1])
    put = lambda sent, who=NODE: grid.call("PUT", OWNER, path, who=who, content=sent)  # noqa: E731
    assert put(body).status_code == 200
    assert put(other).status_code == 409
    assert put(other, "node-b").status_code == 404
    for malformed in (b"", body[:-1], bytes(len(body))):
        assert put(malformed).status_code == 400
    assert file.read_bytes() == body
    step = f"/inference/sessions/{row.session}/steps/0"
    assert grid.call("PUT", OWNER, step, who=NODE, content=b"").status_code == 409
    check(grid)


def test_a_session_asked_for_while_its_half_still_comes(grid, row, monkeypatch):
    """The node does not do so; the row's lease is held, and the opening waits for it."""
    kept.drop(grid[NODE].worker, row.id)
    keep = owner_kept._keep
    states = []

    def slow(ctx, found):
        wanted = {"plan": found.plan, "digest": ended_digest(grid), "deal": found.deal, "batch": 1}
        asked = grid.call("POST", OWNER, "/inference/sessions", who=NODE, json=wanted)
        states.append(asked.json()["state"])
        wait_until(lambda: grid[OWNER].jobs.ended[-1:] == ["inference.open"])
        keep(ctx, found)

    monkeypatch.setattr(owner_kept, "_keep", slow)
    monkeypatch.setattr(prefetch, "_wait", lambda *_: prefetch._Then.SWEEP)
    known = len(grid.sessions())
    prefetch.refill(grid[NODE].worker)
    wait_until(lambda: len(grid.sessions()) > known)
    newest = lambda: grid.sessions()[-1]  # noqa: E731
    wait_until(lambda: newest().state == "ready", what="the opening")
    assert states == ["preparing"]
    grid.call("DELETE", OWNER, f"/inference/sessions/{newest().id}", who=NODE)


@pytest.mark.parametrize("limit", ["max_kept_a_node", "max_kept_bytes"])
def test_an_owner_without_room_leaves_the_node_its_own_half(grid, limit, monkeypatch):
    settings = grid[OWNER].ctx.settings
    before = getattr(settings, limit)
    object.__setattr__(settings, limit, 0)
    try:
        row = stock(grid)
        assert (row.session, row.share) == (None, None)
        assert kept.held(grid[NODE].ctx, row.plan, 1) == (True, False)
        (found,) = grid.call("GET", NODE, "/inference/kept").json()["kept"]
        assert (found["ready"], found["own"], found["coming"]) == (0, 1, 0)
        assert grid.deals()[row.deal] == "reserved"
        check(grid)
        assert grid.sessions()[-1].deal == row.deal
    finally:
        object.__setattr__(settings, limit, before)


def test_what_both_keep_goes_before_what_the_node_keeps_alone(grid, monkeypatch):
    """Though it expires later."""
    room, worker = grid[OWNER].ctx.settings, grid[NODE].worker
    before = room.max_kept_a_node
    object.__setattr__(room, "max_kept_a_node", 0)
    try:
        alone = stock(grid)
        object.__setattr__(room, "max_kept_a_node", 1)
        object.__setattr__(worker.settings, "prefetch", 2)
        prefetch.refill(worker)
        wait_until(lambda: kept.counts(worker).get("kept") == 2, 60, "the prefetch")
        (both,) = (row for row in rows(grid) if row.state == "kept" and row.id != alone.id)
        assert alone.expires < both.expires
        check(grid)
        assert {row.id: row.state for row in rows(grid)}[both.id] == "taken"
    finally:
        object.__setattr__(room, "max_kept_a_node", before)
        object.__setattr__(worker.settings, "prefetch", 1)
    for row in rows(grid):
        kept.drop(worker, row.id)


def test_what_is_kept_too_long_is_burned_by_both(grid, row, monkeypatch):
    owner = grid[OWNER].worker
    later = session_of(grid, row).expires + timedelta(seconds=1)
    assert row.expires == session_of(grid, row).expires
    with monkeypatch.context() as patch:
        patch.setattr(owner.clock, "now", lambda: later)
        owner_kept.watch(owner)
    assert session_of(grid, row).state == "failed"
    wait_until(lambda: owner_files(grid) == [], what="the burning")
    check(grid, attempts=2)  # the node had not noticed


def test_files_of_kept_sessions_are_not_stale(grid, row):
    old = time.time() - 7 * 3600
    folder = grid[OWNER].ctx.files.path("sessions", "x").parent
    for path in (*folder.iterdir(), folder / "left"):
        path.touch()
        os.utime(path, (old, old))
    tasks.tidy(grid[OWNER].worker)
    assert owner_files(grid) == [f"{row.session}.half", f"{row.session}.offline"]
    check(grid)


def test_an_owner_that_is_away_is_waited_for(grid, row, monkeypatch):
    worker = grid[NODE].worker
    kept.drop(worker, row.id)
    wait = prefetch._wait

    def away(*_):
        raise PeerUnavailable("model-owner cannot be reached.")

    monkeypatch.setattr(prefetch, "_wait", away)
    prefetch.refill(worker)
    wait_until(lambda: kept.counts(worker).get("waiting") == 1)
    monkeypatch.setattr(prefetch, "_wait", wait)
    wait_until(lambda: all(each.lease_owner is None for each in rows(grid)))
    prefetch.refill(worker)
    wait_until(lambda: kept.counts(worker).get("kept") == 1)


def test_what_is_served_no_more_is_burned_by_both(grid):
    name = "gone"
    grid.serve(name)
    worker = grid[NODE].worker
    plans = {
        row["plan"]
        for row in grid.call("GET", OWNER, f"/models/{name}/versions/1/serve").json()["servings"]
    }
    prefetch.refill(worker)
    own = lambda: [row for row in rows(grid) if row.plan in plans]  # noqa: E731
    wait_until(lambda: [row.state for row in own()] == ["kept"])
    session = own()[0].session
    path = f"/models/{name}/versions/1/serve"
    assert grid.call("DELETE", OWNER, path).status_code == 204
    owner_kept.watch(grid[OWNER].worker)
    wait_until(lambda: not any(session in name for name in owner_files(grid)))
    prefetch.refill(worker)
    assert [row.state for row in own()] == ["dropped"]
