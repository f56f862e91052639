"""Answers that come at the same moment: each counts once, and a phase ends once."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from primia.errors import PrimiaError
from primia.messages.rounds import Decision, TrainReport
from services.model_owner.rounds import answers, store
from tests.services.model_owner.federation import NODES

PLAIN = {"aggregation": {"secure": False}}


def at_once(jobs) -> list[Exception | None]:
    """Run them from one moment on; what each raised."""
    barrier = Barrier(len(jobs))

    def go(job):
        barrier.wait()
        try:
            job()
        except PrimiaError as error:
            return error
        return None

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(go, jobs))


def answering(federation, run: str, node: str, give):
    def job() -> None:
        with federation.ctx.db.session() as session:
            give(answers.place(federation.ctx, session, run, node))

    return job


def kinds(federation, run: str) -> Counter:
    with federation.ctx.db.reading() as session:
        return Counter(event.kind for event in store.events(session, run, 0, 1000))


def test_all_nodes_at_the_same_moment(each_federation):
    federation = each_federation.with_model()
    run = federation.start(**PLAIN)
    decision = Decision(accepted=True, samples=5, classes=("normal", "pneumonia"))
    jobs = [
        answering(federation, run, name, lambda here: answers.decide(here, decision))
        for name in NODES
    ]
    assert at_once(jobs * 2) == [None] * 6
    assert kinds(federation, run) == {"created": 1, "accepted": 3, "begun": 1, "round": 1}
    report = TrainReport(samples=5, loss=1.0, accuracy=0.5, seconds=1.0)
    jobs = [
        answering(federation, run, name, lambda here: answers.report(here, 1, report, 10))
        for name in NODES
    ]
    assert at_once(jobs * 2) == [None] * 6
    assert kinds(federation, run)["trained"] == 3
    assert kinds(federation, run)["round"] == 2
    sites = federation.show(run)["reports"][0]["sites"]
    assert [site["bytes_up"] for site in sites] == [10, 10, 10]


def test_of_two_different_answers_one_counts(each_federation):
    federation = each_federation.with_model()
    run = federation.start(**PLAIN)
    yes = Decision(accepted=True, samples=5, classes=("normal", "pneumonia"))
    no = Decision(accepted=False, reason="no")
    jobs = [
        answering(federation, run, "node-a", lambda here, said=said: answers.decide(here, said))
        for said in (yes, no)
    ]
    raised = at_once(jobs)
    assert sum(error is None for error in raised) == 1
    refused = next(error for error in raised if error is not None)
    assert refused.code == "unexpected-message"
    found = kinds(federation, run)
    assert found["accepted"] + found["refused"] == 1


def test_two_runs_that_want_one_node_at_the_same_moment(each_federation):
    federation = each_federation.with_model()
    body = {"model": "chest", "rounds": 1, "training": {"image_size": 16}, **PLAIN}

    def job(*nodes: str):
        def start() -> None:
            answer = federation.user("POST", "/rounds", json={**body, "nodes": nodes})
            statuses.append(answer.status_code)

        return start

    statuses: list[int] = []
    at_once([job("node-a", "node-b"), job("node-b", "node-c")])
    assert sorted(statuses) == [202, 409]
