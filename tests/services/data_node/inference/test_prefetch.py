"""Deals kept ahead: used once, replaced, and thrown away before they expire."""

from __future__ import annotations

import os
import time
from datetime import timedelta

import pytest

from services.data_node.inference import prefetch, tasks
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
    wait_until(lambda: prefetch.counts(grid[NODE].worker).get("kept") == 2, what="the prefetch")
    return grid


def kept_files(grid):
    return list(grid[NODE].ctx.files.path("prefetched", "x").parent.iterdir())


def test_kept_deals_are_used_once_and_replaced(full):
    before = set(full.deals())
    taken = prefetch.counts(full[NODE].worker).get("taken", 0)
    status, _ = full.classify(picture(1))
    assert status["attempts"] == 1
    assert set(full.deals()) == before  # nothing was dealt for it
    assert prefetch.counts(full[NODE].worker)["taken"] == taken + 1
    assert len(kept_files(full)) == 1
    prefetch.refill(full[NODE].worker)
    wait_until(lambda: prefetch.counts(full[NODE].worker).get("kept") == 2)


def test_another_batch_is_dealt_on_demand(full):
    before = prefetch.counts(full[NODE].worker)["kept"]
    full.classify(picture(1), picture(2))
    assert prefetch.counts(full[NODE].worker)["kept"] == before


def test_a_half_that_is_gone_is_burned_and_another_taken(full):
    for file in kept_files(full):
        file.unlink()
    known = set(full.deals())
    status, _ = full.classify(picture(1))
    assert status["attempts"] == 1
    assert len(set(full.deals()) - known) == 1


def test_a_broken_download_leaves_no_deal_behind(grid, monkeypatch):
    prefetch.refill(grid[NODE].worker)
    time.sleep(0.5)

    def away(*_):
        raise prefetch.Unavailable("The disk is gone.")

    worker = grid[NODE].worker
    for _ in range(3):
        prefetch.take(worker, _plan(grid), grid.compiled(_plan(grid)).plan, 1)
    known = set(grid.deals())
    with monkeypatch.context() as patch:
        patch.setattr(prefetch.material, "download", away)
        prefetch.refill(worker)
        wait_until(lambda: prefetch.counts(worker).get("fetching", 0) == 0)
    new = lambda: {state for deal, state in grid.deals().items() if deal not in known}  # noqa: E731
    wait_until(lambda: new() == {"spent"}, what="the burning")
    assert kept_files(grid) == []


def test_what_a_killed_worker_left_is_removed_and_kept_halves_are_not(full):
    worker = full[NODE].worker
    long_ago = time.time() - 7 * 3600
    kept = kept_files(full)
    places = (("halves", "a"), ("prefetched", "0" * 32), ("openings", "b.partial"))
    left = [worker.files.path(*place) for place in places]
    opening = worker.files.path("openings", "c")
    for path in (*left, opening):
        path.write_bytes(b"half")
    for path in (*left, opening, *kept):
        os.utime(path, (long_ago, long_ago))
    tasks.tidy(worker)
    assert not any(path.exists() for path in left)
    assert opening.exists()
    assert sorted(kept_files(full)) == sorted(kept)
    status, _ = full.classify(picture(1))
    assert status["attempts"] == 1


def _plan(grid):
    return grid.call("GET", OWNER, "/models/chest/versions/1/serve").json()["servings"][0]["plan"]


def test_what_is_about_to_expire_is_burned(full, monkeypatch):
    worker = full[NODE].worker
    later = worker.clock.now() + timedelta(seconds=3500)
    with monkeypatch.context() as patch:
        patch.setattr(worker.clock, "now", lambda: later)
        prefetch._drop_old(worker)
    assert prefetch.counts(worker).get("kept", 0) == 0
    assert kept_files(full) == []


def test_a_fetch_that_died_is_dropped_with_its_deal(grid):
    worker = grid[NODE].worker
    grid[NODE].jobs.held.add(prefetch.FETCH)
    prefetch.refill(worker)
    grid[NODE].jobs.held.clear()
    with worker.db.session() as session:
        row = session.query(prefetch.PrefetchedDeal).filter_by(state="fetching").first()
        wanted = prefetch.ServedModel.model_validate_json(row.served).plans[0]
        row.deal = prefetch.material.reserve(worker, wanted, 1, lambda: None).id
    prefetch.fetch(worker, row.id)
    assert grid.deals()[row.deal] == "spent"
    with worker.db.reading() as session:
        assert session.get_one(prefetch.PrefetchedDeal, row.id).state == "dropped"


def test_nothing_is_kept_where_it_is_not_wanted(grid):
    ctx = grid["node-b"].worker
    prefetch.refill(ctx)
    assert prefetch.counts(ctx) == {}
    assert grid.call("GET", DEALER, f"/plans/{_plan(grid)}", who=OWNER).status_code == 200
