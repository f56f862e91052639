"""The agent against a real server: it asks, takes in, waits out an absence, and asks alone."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from primia.errors import NotFound
from services.data_node.training import agent, intake, store, tasks
from services.data_node.training.tables import Agent, WorkRow
from tests.services.data_node.training.conftest import run_row
from tests.support.owner_double import RUN, serving
from tests.support.servers import free_port


async def work_on(ctx) -> None:
    """What the worker does, in this process."""
    while True:
        with ctx.db.reading() as session:
            due = store.due_items(session, ctx.clock.now())
        for item in due:
            await asyncio.to_thread(tasks.work, ctx, item)
        await asyncio.sleep(0.02)


async def until(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def running(*coroutines):
    started = [asyncio.create_task(each) for each in coroutines]
    try:
        yield started
    finally:
        for each in started:
            each.cancel()
        await asyncio.gather(*started, return_exceptions=True)


def items(ctx) -> list[tuple[str, str]]:
    with ctx.db.reading() as session:
        rows = session.query(WorkRow).order_by(WorkRow.created).all()
        return [(row.kind, row.state) for row in rows]


def state(ctx) -> str | None:
    with contextlib.suppress(NotFound):
        return run_row(ctx).state
    return None


def test_a_whole_run_by_itself(federation):
    grid = federation(rounds=1, poll_seconds=2)

    async def play() -> None:
        agents = [agent.run(node) for node in grid.nodes]
        workers = [work_on(node) for node in grid.nodes]
        async with running(*agents, *workers):
            await until(lambda: grid.owner._all("acknowledgement", 0) is not None)

    asyncio.run(play())
    assert [state(node) for node in grid.nodes] == ["finished", "finished"]


def test_the_same_item_is_taken_in_once_and_cancellation_is_heard(federation, monkeypatch):
    monkeypatch.setattr(agent, "_LOOK_SECONDS", 0.2)
    grid = federation(approval="manual", poll_seconds=1)
    node = grid.nodes[0]

    async def play() -> None:
        async with running(agent.run(node), work_on(node)):
            await until(lambda: items(node) == [("review", "waiting")])
            await asyncio.sleep(1)
            assert items(node) == [("review", "waiting")]
            grid.owner.stop("cancelled")
            await until(lambda: ("stop", "sent") in items(node))

    asyncio.run(play())
    assert state(node) == "cancelled"


def test_an_owner_that_starts_late_and_restarts_is_found_again(federation, monkeypatch):
    monkeypatch.setattr(agent, "LONGEST_PAUSE", 0.3)
    port = free_port()
    grid = federation(rounds=1, poll_seconds=1)
    for node in grid.nodes:
        url = f"http://127.0.0.1:{port}"
        node.settings = node.settings.model_copy(update={"owner_url": url})
    node = grid.nodes[0]

    async def play() -> None:
        async with running(agent.run(node), work_on(node)):
            await asyncio.sleep(0.5)
            assert items(node) == []
            with serving(grid.owner.app(), port):
                await until(lambda: ("review", "sent") in items(node))
            await asyncio.sleep(0.5)
            grid.owner.stop("failed", "over")
            with serving(grid.owner.app(), port):
                await until(lambda: ("stop", "sent") in items(node))

    asyncio.run(play())
    assert state(node) == "failed"


def test_one_process_asks_at_a_time(federation, monkeypatch):
    grid = federation(poll_seconds=1)
    node = grid.nodes[0]
    asked: list[object] = []

    async def counted(ctx, held) -> None:
        asked.append(held)
        await asyncio.sleep(0.5)

    monkeypatch.setattr(agent, "_ask_on", counted)

    async def play() -> None:
        async with running(agent.run(node), agent.run(node)):
            await until(lambda: asked)
            await asyncio.sleep(0.3)
            assert len(asked) == 1

    asyncio.run(play())
    with node.db.reading() as session:
        assert session.get(Agent, "model-owner").lease_owner is None


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{}", 200), (b"no json", 200), (b'{"kind":"review","run":"../x"}', 200), (b"", 500)],
)
def test_an_owner_that_talks_nonsense_is_not_believed(federation, body: bytes, status: int):
    from fastapi import FastAPI, Response

    nonsense = FastAPI()
    nonsense.get("/node/work")(lambda: Response(body, status_code=status))
    grid = federation(poll_seconds=1)
    node = grid.nodes[0]

    async def play() -> None:
        with serving(nonsense) as url:
            async with node.peers.asynchronous("model-owner", url) as http:
                with pytest.raises(agent.PrimiaError, match="model-owner"):
                    await agent._ask_once(node, http)

    asyncio.run(play())
    assert items(node) == []


def test_pauses_grow_to_their_bound_and_differ():
    assert 0.5 <= agent.pause(1) <= 1
    assert all(
        agent.LONGEST_PAUSE / 2 <= agent.pause(number) <= agent.LONGEST_PAUSE
        for number in (10, 50, 10_000)
    )
    assert len({agent.pause(20) for _ in range(50)}) > 10


def test_an_item_counts_as_settled_when_the_owner_has_the_answer(federation):
    grid = federation(approval="manual")
    node = grid.nodes[0]
    row = intake.take_in(node, grid.owner.item("node-a"))
    assert not intake.is_settled(node, row)
    tasks.work(node, row)
    assert not intake.is_settled(node, row)
    with node.db.session() as session:
        session.get(WorkRow, row).state = "sent"
    assert intake.is_settled(node, row)
    assert run_row(node).id == RUN
