"""Encrypted inference while everything breaks, at every message of a session at once.

Many jobs run at a time, each held by a proxy at another of its messages, before it arrives or
after it was answered; then a process is killed. Every job has to end well all the same, by a second
attempt with new material, and what was open has to be burned.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pytest

from primia.client import DataNode, ModelOwner
from primia.errors import PeerRefused
from primia.grid import layout, processes
from primia.learning.calibration import probes
from primia.learning.models import create_model
from primia.messages.inference import InferenceStatus, Protocol, ServeRequest
from primia.messages.registry import NewModel
from primia.mpc.compile import compile_model
from primia.mpc.securenn.layout import steps
from tests.support.faults import (
    OFFLINE,
    OWNERS_DEALER,
    Call,
    Crowd,
    Paused,
    Proxy,
    Routed,
    passed_on,
)
from tests.support.grid import CLASSES, SIDE, draw_images
from tests.support.securenn import Session
from tests.support.servers import wait_until

pytestmark = pytest.mark.e2e

NODE = "hospital-a"
ENDED = ("done", "failed", "cancelled")
MODEL = "lenet"
REQUESTS = 8
STEPS = [OFFLINE, *range(REQUESTS)]
POINTS = [(number, when) for number in STEPS for when in ("before", "after")]
# As many sessions and deals at once as there are points, and some.
_ROOM = {
    layout.OWNER: {
        "PRIMIA_MAX_SESSIONS": "64",
        "PRIMIA_MAX_SESSIONS_A_NODE": "64",
        "PRIMIA_MAX_STREAMS": "16",
        "PRIMIA_CONCURRENCY": "8",
        "PRIMIA_SESSION_IDLE_SECONDS": "45",
    },
    layout.DEALER: {"PRIMIA_MAX_OPEN_DEALS": "64", "PRIMIA_MAX_ASSISTANCES": "16"},
    NODE: {"PRIMIA_CONCURRENCY": "32"},
}


@dataclass
class Stage:
    """The running grid; ``right`` is the label that an undisturbed inference gives."""

    grid: Routed
    owner: ModelOwner
    node: DataNode
    image: Path
    right: str = ""
    before: frozenset[str] = frozenset()

    @property
    def proxies(self) -> dict[str, Proxy]:
        return self.grid.proxies

    def start(self, protocol: Protocol = "fss") -> str:
        return self.node.infer([self.image], MODEL, result="label", protocol=protocol).id

    def ended(self, job: str, seconds: float = 120) -> InferenceStatus:
        wait_until(lambda: self.node.inference(job).state in ENDED, seconds, f"the end of {job}")
        return self.node.inference(job)

    def check_right(self, *jobs: str, attempts: tuple[int, ...] = (1,)) -> None:
        for job in jobs:
            status = self.ended(job)
            assert status.state == "done", status.reason
            assert self.node.result(job).predictions[0].label == self.right
            assert status.attempts in attempts, (status.attempts, status.reason)

    def check_clean(self, *jobs: str) -> None:
        """Right; or, where the machine is too slow for the service to be back within all attempts,
        failed for that reason."""
        for job in jobs:
            status = self.ended(job)
            if status.state == "failed":
                assert status.attempts == 4
                assert "cannot be reached" in status.reason
            else:
                self.check_right(job, attempts=(1, 2, 3, 4))

    def kill(self, member: str, part: str) -> None:
        processes.stop(self.grid, self.grid.member(member), part, force=True)

    def restart(self, member: str, part: str, **settings: str) -> None:
        """With other settings, if need be."""
        self.kill(member, part)
        known = self.grid.extra.get(member, {})
        changed = replace(self.grid, extra={**self.grid.extra, member: {**known, **settings}})
        processes.start(changed, self.grid.member(member), part)

    def open_ends(self) -> frozenset[str]:
        """Deals at the dealer and sessions at the owner that have not ended."""
        found: set[str] = set()
        for member, table in ((layout.DEALER, "deals"), (layout.OWNER, "sessions")):
            query = f"SELECT id FROM {table} WHERE state NOT IN ('spent', 'failed', 'done')"
            with closing(self._database(member)) as database:
                found |= {row[0] for row in database.execute(query)}
        return frozenset(found)

    def let_leases_run_out(self, member: str = NODE) -> None:
        """The lease of a dead worker lasts for half a minute, which nobody wants to wait for."""
        table = {NODE: "inferences", layout.OWNER: "sessions"}[member]
        with closing(self._database(member)) as database, database:
            past = datetime.now(UTC).replace(tzinfo=None, year=2020).isoformat(" ")
            database.execute(f"UPDATE {table} SET lease_until = ?", (past,))

    def _database(self, member: str) -> sqlite3.Connection:
        return sqlite3.connect(self.grid.root / member / "database.sqlite", timeout=30)

    def check_burned(self, unknown: int = 0) -> None:
        """Nothing is left open, but for ``unknown`` deals of which no answer has come."""
        left = lambda: self.open_ends() - self.before  # noqa: E731
        wait_until(lambda: len(left()) <= unknown, 75, "the burning of what was open")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    whole = layout.create(tmp_path_factory.mktemp("faults") / "grid")
    chosen = tuple(whole.member(name) for name in (layout.DEALER, layout.OWNER, NODE))
    proxies = {name: Proxy(whole.member(name).url) for name in (layout.DEALER, layout.OWNER)}
    proxies[OWNERS_DEALER] = Proxy(whole.member(layout.DEALER).url)
    grid = Routed(whole.root, chosen, proxies, _ROOM)
    images = grid.home(grid.member(NODE)) / "images" / "set"
    draw_images(images, 0, each=1)
    try:
        processes.up(grid)
        owner, node = grid.member(layout.OWNER), grid.member(NODE)
        made = Stage(
            grid,
            ModelOwner(grid.operator(), owner.name, owner.url),
            DataNode(grid.operator(), node.name, node.url),
            next(images.rglob("*.png")),
        )
        register(made)
        job = made.start()
        assert made.ended(job).state == "done", made.node.inference(job).reason
        assert made.node.inference(job).steps == REQUESTS
        made.right = made.node.result(job).predictions[0].label
        yield made
    finally:
        processes.down(grid)
        for proxy in proxies.values():
            proxy.close()


def new_model() -> NewModel:
    spec = {"architecture": "lenet", "classes": CLASSES, "image_size": SIDE, "seed": 4}
    return NewModel.model_validate({"name": MODEL, **spec})


def register(stage: Stage) -> None:
    stage.owner.create_model(new_model())
    stage.owner.wait_version(MODEL, 1)
    serve(stage)


def serve(stage: Stage) -> None:
    stage.owner.serve(MODEL, 1, ServeRequest(stock=0, batch=1))
    stage.owner.wait_served(MODEL, 1)


@pytest.fixture(autouse=True)
def undisturbed(stage: Stage) -> Iterator[None]:
    """What a test leaves, the next one does not meet."""
    stage.before = stage.open_ends()
    yield
    for proxy in stage.proxies.values():
        proxy.rule, proxy.said = passed_on, iter
    processes.up(stage.grid)


@pytest.fixture
def served_again(stage: Stage) -> Iterator[None]:
    yield
    serve(stage)
    stage.check_right(stage.start())


@pytest.fixture
def another_disk(stage: Stage) -> Iterator[Callable[[str], None]]:
    """another_disk(member): its worker has no free disk space; afterwards it has."""
    full: list[str] = []

    def fill(member: str) -> None:
        full.append(member)
        stage.restart(member, "worker", PRIMIA_MIN_FREE_BYTES=str(1 << 60))

    yield fill
    for member in full:
        stage.restart(member, "worker")
    stage.check_right(stage.start())


@pytest.mark.parametrize(
    ("victim", "part"), [(layout.OWNER, "worker"), (layout.OWNER, "api"), (NODE, "worker")]
)
def test_a_process_dies_at_every_message_of_a_session(stage: Stage, victim: str, part: str):
    crowd = Crowd(Call.step, POINTS)
    stage.proxies[layout.OWNER].rule = crowd
    jobs = [stage.start() for _ in POINTS]
    wait_until(lambda: len(crowd.held) == len(POINTS), 90, "a session at every message")
    assert sorted(crowd.held, key=POINTS.index) == POINTS
    stage.kill(victim, part)
    if victim == NODE:
        stage.let_leases_run_out()
    crowd.release()
    processes.start(stage.grid, stage.grid.member(victim), part)
    processes.up(stage.grid)
    if part == "worker":  # it held the sessions, or the node's side of them: all are lost
        stage.check_right(*jobs, attempts=(2, 3, 4))
    else:
        stage.check_clean(*jobs)
    stage.check_burned()


def dealing(call: Call) -> tuple[str, object] | None:
    """Each request to the dealer by its kind; the deal is the job."""
    parts = call.path.strip("/").split("/")
    if parts[0] != "deals" or call.method == "DELETE":
        return None
    if len(parts) == 1:
        return None
    return parts[1], (call.method, parts[2] if len(parts) > 2 else "")


DEALS = [
    (point, when)
    for point in (("GET", ""), ("GET", "half"), ("POST", "received"))
    for when in ("before", "after")
]


@pytest.mark.parametrize(
    ("line", "victim", "part"),
    [
        (layout.DEALER, layout.DEALER, "api"),
        (OWNERS_DEALER, layout.DEALER, "api"),
        (OWNERS_DEALER, layout.OWNER, "worker"),
    ],
)
def test_a_process_dies_at_every_message_to_the_dealer(
    stage: Stage, line: str, victim: str, part: str
):
    """At the data node's, then at the model owner's."""
    crowd = Crowd(dealing, DEALS)
    stage.proxies[line].rule = crowd
    jobs = [stage.start() for _ in DEALS]
    wait_until(lambda: len(crowd.held) == len(DEALS), 60, "a deal at every message")
    stage.kill(victim, part)
    if part == "worker":
        stage.let_leases_run_out(victim)
    crowd.release()
    processes.start(stage.grid, stage.grid.member(victim), part)
    stage.check_clean(*jobs)
    stage.check_burned()


def test_the_nodes_api_dies_and_its_worker_goes_on(stage: Stage):
    points: list[tuple[object, str]] = [(number, "before") for number in STEPS]
    crowd = Crowd(Call.step, points)
    stage.proxies[layout.OWNER].rule = crowd
    jobs = [stage.start() for _ in points]
    wait_until(lambda: len(crowd.held) == len(points), 60, "a session at every message")
    stage.kill(NODE, "api")
    crowd.release()
    processes.up(stage.grid)
    stage.check_right(*jobs)
    stage.check_burned()


def test_a_message_that_comes_after_its_session_has_ended_costs_an_attempt(stage: Stage):
    stage.restart(layout.OWNER, "worker", PRIMIA_SESSION_IDLE_SECONDS="3")
    try:
        crowd = Crowd(Call.step, [(REQUESTS // 2, "before")])
        stage.proxies[layout.OWNER].rule = crowd
        job = stage.start()
        wait_until(lambda: crowd.held, 60, "the message")
        wait_until(lambda: not stage.open_ends() - stage.before, 60, "the session's end")
        assert stage.node.inference(job).state == "running"
        crowd.release()
        stage.check_right(job, attempts=(2, 3))
        stage.check_burned()
    finally:
        stage.restart(layout.OWNER, "worker")


@pytest.fixture(scope="module")
def places() -> list[int]:
    """Of each step of the model by SecureNN: what the node has said to the owner before, bytes."""
    given = new_model().spec()
    model = compile_model(
        create_model(given).eval(), given.input_shape, result="label", calibration=probes(given)
    )
    session = Session(model.plan, model.weights)
    session.run(np.zeros((1, *given.input_shape), np.float32))
    assert len(session.grid.begun) == len(list(steps(model.plan, 1)))
    return [0, *session.grid.begun]  # at first before anything is said


@pytest.mark.parametrize(
    ("victim", "part"), [(layout.OWNER, "api"), (layout.DEALER, "api"), (NODE, "worker")]
)
def test_a_process_dies_at_every_step_of_securenn(
    stage: Stage, places: list[int], victim: str, part: str
):
    paused = Paused(places)
    stage.proxies[layout.OWNER].said = paused
    jobs = [stage.start("securenn") for _ in places]
    wait_until(lambda: len(paused.held) == len(places), 90, "a session at every step")
    assert sorted(paused.held) == places
    stage.kill(victim, part)
    if victim == NODE:
        stage.let_leases_run_out()
    paused.release()
    processes.start(stage.grid, stage.grid.member(victim), part)
    if victim == NODE:
        stage.check_right(*jobs, attempts=(2, 3, 4))
    else:
        stage.check_clean(*jobs)
    assert all(stage.node.inference(job).protocol == "securenn" for job in jobs)


@pytest.mark.usefixtures("served_again")
def test_a_version_that_is_withdrawn_in_a_session_of_securenn_serves_it_to_its_end(
    stage: Stage, places: list[int]
):
    paused = Paused([places[len(places) // 2]])
    stage.proxies[layout.OWNER].said = paused
    job = stage.start("securenn")
    wait_until(lambda: paused.held, 60, "the middle of the session")
    withdraw(stage)
    with pytest.raises(PeerRefused, match=f"serves no model {MODEL}"):
        stage.start("securenn")
    paused.release()
    stage.check_right(job)


def first_asked(call: Call) -> bool:
    return (call.method, call.path) == ("POST", "/deals")


@pytest.mark.parametrize("arrives", [False, True])
def test_a_lost_question_for_a_deal_costs_an_attempt(stage: Stage, arrives: bool):
    lost = []

    def rule(call: Call) -> httpx.Response | None:
        if not first_asked(call) or lost:
            return call.send()
        lost.append(call.send() if arrives else call)
        return None

    stage.proxies[layout.DEALER].rule = rule
    stage.check_right(stage.start(), attempts=(2,))
    assert len(lost) == 1
    # A deal that was made and never heard of is nobody's to burn: it expires at the dealer.
    stage.check_burned(unknown=int(arrives))


def each_step(action: Callable[[Call, int], httpx.Response | None]) -> tuple[list[int], Callable]:
    """A rule that does this once with every message of a session; the numbers it was done with."""
    seen: list[int] = []

    def rule(call: Call) -> httpx.Response | None:
        step = call.step()
        if step is None or step[1] in seen:
            return call.send()
        seen.append(step[1])
        return action(call, step[1])

    return seen, rule


def test_every_answer_is_lost_once(stage: Stage):
    def lose(call: Call, _number: int) -> None:
        call.send()

    seen, stage.proxies[layout.OWNER].rule = each_step(lose)
    stage.check_right(stage.start())
    assert seen == STEPS
    stage.check_burned()


def test_every_request_comes_twice_then_altered_and_long_afterwards(stage: Stage):
    """The same bytes get the same answer; others, and those of an earlier step, are refused."""
    earlier: list[Call] = []
    refused = []

    def disturb(call: Call, _number: int) -> httpx.Response:
        answer = call.send()
        assert call.send().content == answer.content
        altered = call.send(call.body[:-1] + bytes([call.body[-1] ^ 1]))
        stale = [each.send() for each in earlier]
        refused.extend(each.status_code for each in (altered, *stale))
        earlier.append(call)
        return answer

    seen, stage.proxies[layout.OWNER].rule = each_step(disturb)
    stage.check_right(stage.start())
    assert seen == STEPS
    assert set(refused) == {409}
    assert len(refused) == len(STEPS) * (len(STEPS) + 1) // 2
    stage.check_burned()


def test_a_dealer_that_stays_away_fails_the_job_with_the_reason(stage: Stage):
    stage.kill(layout.DEALER, "api")
    status = stage.ended(stage.start())
    assert (status.state, status.attempts) == ("failed", 4)
    assert "crypto-provider cannot be reached" in status.reason
    processes.up(stage.grid)
    stage.check_right(stage.start())


@pytest.mark.parametrize(("member", "attempts"), [(NODE, 1), (layout.OWNER, 4)])
def test_a_full_disk_fails_the_job_with_the_reason(
    stage: Stage, another_disk: Callable[[str], None], member: str, attempts: int
):
    another_disk(member)
    status = stage.ended(stage.start())
    assert (status.state, status.attempts) == ("failed", attempts)
    assert "are free beside the reserve" in status.reason
    stage.check_burned()


def test_a_dealer_without_disk_space_costs_attempts_until_it_has_some(stage: Stage):
    stage.restart(layout.DEALER, "worker", PRIMIA_MIN_FREE_BYTES=str(1 << 60))
    try:
        job = stage.start()
        told = lambda: "are free beside the reserve" in stage.node.inference(job).reason  # noqa: E731
        wait_until(told, 60, "the reason")
        assert stage.node.inference(job).state == "running"
    finally:
        stage.restart(layout.DEALER, "worker")
    stage.check_right(job, attempts=(2, 3, 4))
    stage.check_burned()


def withdraw(stage: Stage) -> None:
    stage.owner.http.delete(f"/models/{MODEL}/versions/1/serve")


@pytest.mark.usefixtures("served_again")
def test_a_version_that_is_withdrawn_before_the_session_fails_the_job(stage: Stage):
    def rule(call: Call) -> httpx.Response:
        if call.path == "/inference/sessions":
            withdraw(stage)
            stage.proxies[layout.OWNER].rule = passed_on
        return call.send()

    stage.proxies[layout.OWNER].rule = rule
    status = stage.ended(stage.start())
    assert status.state == "failed"
    assert "withdrawn" in status.reason
    stage.check_burned()


@pytest.mark.usefixtures("served_again")
def test_a_version_that_is_withdrawn_in_a_session_serves_it_to_its_end(stage: Stage):
    def at_half(call: Call, number: int) -> httpx.Response:
        if number == REQUESTS // 2:
            withdraw(stage)
        return call.send()

    seen, stage.proxies[layout.OWNER].rule = each_step(at_half)
    stage.check_right(stage.start())
    assert seen == STEPS
    stage.check_burned()


# -- the last test here: what it has kept, later ones would find -------------------------------


def test_an_image_finds_its_material_kept_by_both_even_after_a_crash(stage: Stage):
    stage.restart(NODE, "worker", PRIMIA_PREFETCH="1")

    def ready() -> bool:
        found = stage.node.kept().kept
        return len(found) == 2 and all(each.ready == 1 for each in found)  # scores and label

    wait_until(ready, 60, "the material")
    waited = []  # for what an image asks of the dealer

    def rule(call: Call) -> httpx.Response:
        if call.path == "/deals" and not json.loads(call.body).get("ahead"):
            waited.append(call.path)
        return call.send()

    stage.proxies[layout.DEALER].rule = rule
    seen, stage.proxies[layout.OWNER].rule = each_step(lambda call, _number: call.send())
    job = stage.start()
    stage.check_right(job)
    cost = stage.node.inference(job).cost
    assert (cost.material_bytes, cost.offline_bytes) == (0, 0)
    assert cost.material_seconds < 1
    assert seen[:REQUESTS] == list(range(REQUESTS))  # its offline message had come before
    wait_until(ready, 60, "the replacement")
    for part in ("worker", "api"):
        stage.kill(layout.OWNER, part)
        processes.start(stage.grid, stage.grid.member(layout.OWNER), part)
    processes.up(stage.grid)
    stage.check_right(stage.start())
    assert waited == []
