"""Deals kept ahead: used once, replaced, and thrown away before they expire."""

from __future__ import annotations

import itertools
import os
import threading
import time
from datetime import timedelta

import pytest

from primia.errors import PeerUnavailable, Unavailable
from primia.messages.inference import ServedModel
from services.data_node.inference import kept, material, prefetch, tasks
from tests.support.contexts import Cast
from tests.support.encrypted import DEALER, NODE, OWNER, network, picture
from tests.support.servers import wait_until


@pytest.fixture(scope="module")
def grid(tmp_path_factory, broker_url):
    cast = Cast(tmp_path_factory.mktemp("grid"))
    with network(cast, broker_url, node_settings={"prefetch": 2}) as made:
        made.serve(results=("label",))
        yield made


@pytest.fixture
def full(grid):
    """Two deals are kept."""
    prefetch.refill(grid[NODE].worker)
    wait_until(lambda: kept.counts(grid[NODE].worker).get("kept") == 2, what="the prefetch")
    return grid


def kept_files(grid):
    return list(grid[NODE].ctx.files.path("prefetched", "x").parent.iterdir())


def test_kept_deals_are_used_once_and_replaced(full):
    before = set(full.deals())
    taken = kept.counts(full[NODE].worker).get("taken", 0)
    full[NODE].jobs.held.add(prefetch.FETCH)
    status, _ = full.classify(picture(1))
    assert status["attempts"] == 1
    assert set(full.deals()) == before  # nothing was dealt for it
    assert kept.counts(full[NODE].worker)["taken"] == taken + 1
    assert len(kept_files(full)) == 1
    wait_until(lambda: kept.counts(full[NODE].worker).get("fetching") == 1, what="the replacement")
    full[NODE].jobs.held.clear()
    prefetch.refill(full[NODE].worker)
    wait_until(lambda: kept.counts(full[NODE].worker).get("kept") == 2)


def test_another_batch_is_dealt_on_demand(full):
    before = kept.counts(full[NODE].worker)["kept"]
    found = full.call("GET", NODE, "/inference/kept").json()["kept"]
    assert [(each["model"], each["ready"], each["own"], each["batch"]) for each in found] == [
        ("chest", 2, 0, 1)
    ]
    full.classify(picture(1), picture(2))
    assert kept.counts(full[NODE].worker)["kept"] == before


def test_a_used_deal_is_replaced_before_the_next_sweep(full):
    taken = kept.counts(full[NODE].worker).get("taken", 0)
    full.classify(picture(1))
    wait_until(lambda: kept.counts(full[NODE].worker).get("kept") == 2, what="the replacement")
    assert kept.counts(full[NODE].worker)["taken"] == taken + 1


def test_a_half_that_is_gone_is_burned_and_another_taken(full):
    for file in kept_files(full):
        file.unlink()
    known = set(full.deals())
    full[NODE].jobs.held.add(prefetch.FETCH)
    status, _ = full.classify(picture(1))
    assert status["attempts"] == 1
    assert len(set(full.deals()) - known) == 1
    wait_until(lambda: kept.counts(full[NODE].worker).get("fetching") == 1, what="the replacement")
    full[NODE].jobs.held.clear()


def test_a_broken_download_leaves_no_deal_behind(grid, monkeypatch):
    prefetch.refill(grid[NODE].worker)
    time.sleep(0.5)

    def away(*_):
        raise Unavailable("The disk is gone.")

    worker = grid[NODE].worker
    for _ in range(3):
        kept.take(worker, _plan(grid), grid.compiled(_plan(grid)).plan, 1)
    known = set(grid.deals())
    with monkeypatch.context() as patch:
        patch.setattr(material, "download", away)
        prefetch.refill(worker)
        wait_until(lambda: not set(kept.counts(worker)) & set(kept.UNDER_WAY))
    new = lambda: {state for deal, state in grid.deals().items() if deal not in known}  # noqa: E731
    wait_until(lambda: new() == {"spent"}, what="the burning")
    assert kept_files(grid) == []


def test_what_a_killed_worker_left_is_removed_and_kept_halves_are_not(full):
    worker = full[NODE].worker
    long_ago = time.time() - 7 * 3600
    halves = kept_files(full)
    places = (("halves", "a"), ("prefetched", "0" * 32), ("openings", "b.partial"))
    left = [worker.files.path(*place) for place in places]
    opening = worker.files.path("openings", "c")
    for path in (*left, opening):
        path.write_bytes(b"half")
    for path in (*left, opening, *halves):
        os.utime(path, (long_ago, long_ago))
    tasks.tidy(worker)
    assert not any(path.exists() for path in left)
    assert opening.exists()
    assert sorted(kept_files(full)) == sorted(halves)
    status, _ = full.classify(picture(1))
    assert status["attempts"] == 1


def _plan(grid):
    return grid.call("GET", OWNER, "/models/chest/versions/1/serve").json()["servings"][0]["plan"]


def test_what_is_about_to_expire_is_burned(full, monkeypatch):
    worker = full[NODE].worker
    last = max(row.expires for row in rows(full) if row.state == "kept")
    later = last - timedelta(seconds=100)
    with monkeypatch.context() as patch:
        patch.setattr(worker.clock, "now", lambda: later)
        kept.drop_old(worker)
    assert kept.counts(worker).get("kept", 0) == 0
    assert kept_files(full) == []


def test_a_fetch_that_died_is_dropped_with_its_deal(grid):
    worker = grid[NODE].worker
    grid[NODE].jobs.held.add(prefetch.FETCH)
    prefetch.refill(worker)
    grid[NODE].jobs.held.clear()
    with worker.db.session() as session:
        row = session.query(kept.PrefetchedDeal).filter_by(state="fetching").first()
        wanted = ServedModel.model_validate_json(row.served).plans[0]
        row.deal = material.reserve(worker, wanted, 1, lambda: None).id
    prefetch.fetch(worker, row.id)
    assert grid.deals()[row.deal] == "spent"
    with worker.db.reading() as session:
        assert session.get_one(kept.PrefetchedDeal, row.id).state == "dropped"


def test_no_batch_is_kept_that_no_inference_may_have(empty):
    worker = empty[NODE].worker
    before, known = worker.settings.max_batch, len(rows(empty))
    object.__setattr__(worker.settings, "max_batch", 0)
    try:
        prefetch.refill(worker)
    finally:
        object.__setattr__(worker.settings, "max_batch", before)
    assert len(rows(empty)) == known


def test_nothing_is_kept_where_it_is_not_wanted(grid):
    ctx = grid["node-b"].worker
    prefetch.refill(ctx)
    assert kept.counts(ctx) == {}
    assert grid.call("GET", DEALER, f"/plans/{_plan(grid)}", who=OWNER).status_code == 200


def rows(grid):
    with grid[NODE].worker.db.reading() as session:
        return session.query(kept.PrefetchedDeal).all()


@pytest.fixture
def empty(grid):
    """Nothing is kept, and nothing under way."""
    worker = grid[NODE].worker
    wait_until(lambda: not set(kept.counts(worker)) & set(kept.UNDER_WAY), what="the fetching")
    for row in rows(grid):
        kept.drop(worker, row.id)
    yield grid
    grid[NODE].jobs.held.clear()
    wait_until(lambda: not set(kept.counts(worker)) & set(kept.UNDER_WAY), what="the fetching")


def test_a_busy_dealer_is_asked_once_and_later_and_later(empty, monkeypatch):
    worker, asked = empty[NODE].worker, []

    def busy(*_, **__):
        asked.append(worker.clock.now())
        raise PeerUnavailable("crypto-provider has 8 deals open already.", status_of_peer=503)

    known = len(rows(empty))
    now = worker.clock.now()
    with monkeypatch.context() as patch:
        patch.setattr(material, "reserve", busy)
        patch.setattr(worker.clock, "now", lambda: now)
        for _ in range(30):  # ten minutes of sweeps
            prefetch.refill(worker)
            wait_until(lambda: not any(row.lease_owner for row in rows(empty)))
            time.sleep(0.02)
            now += timedelta(seconds=20)
    assert len(rows(empty)) == known + 1
    pauses = [(b - a).total_seconds() for a, b in itertools.pairwise(asked)]
    assert pauses == [20, 40, 80, 160]
    kept.drop(worker, next(row.id for row in rows(empty) if row.state == "fetching"))
    assert len(rows(empty)) == known


def test_waiting_for_a_deal_holds_no_thread(empty):
    """The dealer's worker does not deal: the node looks again and again, in tasks of their own."""
    node, dealer = empty[NODE], empty[DEALER]
    dealer.jobs.held.add("material.deal")
    before = node.jobs.ended.count(prefetch.FETCH)
    prefetch.refill(node.worker)
    wait_until(lambda: node.jobs.ended.count(prefetch.FETCH) >= before + 5)
    assert kept.counts(node.worker)["dealing"] == 1
    dealer.jobs.held.clear()
    dealer.jobs.sweep()
    wait_until(lambda: kept.counts(node.worker).get("kept") == 2, what="the prefetch")


def test_one_download_at_a_time(empty):
    node = empty[NODE]
    lock = node.worker.extras.setdefault(prefetch._DOWNLOADING, threading.Lock())
    with lock:
        prefetch.refill(node.worker)
        wait_until(lambda: kept.counts(node.worker).get("dealing") == 1)
        before = node.jobs.ended.count(prefetch.FETCH)
        wait_until(lambda: node.jobs.ended.count(prefetch.FETCH) >= before + 3)
        assert kept.counts(node.worker)["dealing"] == 1
    wait_until(lambda: kept.counts(node.worker).get("kept") == 2, what="the prefetch")


def test_what_has_ended_is_forgotten(full, monkeypatch):
    worker = full[NODE].worker
    for row in rows(full):
        kept.drop(worker, row.id)
    assert set(kept.counts(worker)) <= {"taken", "dropped"}
    later = max(row.expires for row in rows(full)) + timedelta(seconds=2 * 3600)
    with monkeypatch.context() as patch:
        patch.setattr(worker.clock, "now", lambda: later)
        kept.drop_old(worker)
    assert rows(full) == []
