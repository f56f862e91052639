"""Data nodes and a model owner's double that speak over real HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from primia.chassis.context import Context
from primia.learning.datasets import inspect, scan_folder
from primia.messages.rounds import WORK_ITEM, WorkItem
from services.data_node.datasets import store as datasets
from services.data_node.training import intake, store, tasks
from services.data_node.training.tables import Run, WorkRow
from services.model_owner.settings import ModelOwnerSettings
from tests.support.contexts import Cast
from tests.support.owner_double import RUN, OwnerDouble, serving
from tests.support.radiographs import draw

NAMES = ("node-a", "node-b", "node-c")


def add_dataset(ctx: Context, root: Path, name: str = "chest") -> str:
    """A ready data set of a drawn folder."""
    with ctx.db.session() as session:
        row = datasets.register(
            session,
            dataset_id=name.encode().hex().ljust(32, "0")[:32],
            name=name,
            kind="folder",
            place=str(root),
            patient_pattern=None,
            bad_files="strict",
            now=ctx.clock.now(),
        )
        manifest = inspect(scan_folder(root)).manifest
        assert manifest is not None
        datasets.accept(session, row, manifest, ctx.clock.now())
        return row.id


def fetch(ctx: Context) -> WorkItem | None:
    """What the owner asks of this node now."""
    owner = ctx.peers.client(ctx.settings.owner_name, ctx.settings.owner_url)
    answer = owner.request("GET", "/node/work")
    return None if answer.status_code == 204 else WORK_ITEM.validate_json(answer.content)


def turn(ctx: Context) -> str | None:
    """Fetch one item, take it in and work on it; the id of its row."""
    item = fetch(ctx)
    if item is None:
        return None
    row = intake.take_in(ctx, item)
    if row is not None:
        tasks.work(ctx, row)
    return row


def item_row(ctx: Context, row: str) -> WorkRow:
    with ctx.db.reading() as session:
        found = session.get(WorkRow, row)
    assert found is not None
    return found


def run_row(ctx: Context) -> Run:
    with ctx.db.reading() as session:
        return store.find_run(session, RUN)


class Federation:
    """The double, its URL, and nodes that train on their own drawn images."""

    def __init__(self, owner: OwnerDouble, nodes: list[Context]):
        self.owner, self.nodes = owner, nodes
        self.by_name = {node.identity.name: node for node in nodes}

    def until(self, kind: str, number: int = 0) -> None:
        """Let the nodes work in turn until all of them have answered with this kind."""
        for _ in range(200):
            if self.owner._all(kind, number) is not None:
                return
            for node in self.nodes:
                turn(node)
        raise AssertionError(f"no {kind} of round {number}: {self.owner.log}")

    def finish(self) -> None:
        self.until("acknowledgement")


@pytest.fixture
def federation(make_node, cast: Cast, broker_url: str, images_root: Path):
    """federation(names, secure=…, rounds=…, **node settings) -> Federation, owner serving."""
    stack = []
    contexts = []

    def make(
        names=NAMES[:2], *, secure=True, rounds=1, approval="auto", databases=(), per_class=8,
        training=None, **settings,
    ) -> Federation:  # fmt: skip
        ctx = cast.context("model_owner", "model-owner", ModelOwnerSettings, broker_url)
        contexts.append(ctx)
        principals = [cast.principal(name) for name in names]
        owner = OwnerDouble(ctx, principals, secure=secure, rounds=rounds, **(training or {}))
        server = serving(owner.app())
        settings = {
            "owner_url": server.__enter__(),
            "approval": approval,
            "accept_plain_updates": not secure,
            **settings,
        }
        stack.append(server)
        urls = dict(zip(names, databases, strict=False))
        nodes = []
        for number, name in enumerate(names):
            node = make_node(name, urls.get(name), **settings)
            add_dataset(node, draw(images_root / name, per_class, seed=number))
            nodes.append(node)
        return Federation(owner, nodes)

    yield make
    for server in stack:
        server.__exit__(None, None, None)
    for ctx in contexts:
        ctx.close()
