"""Trials and runs started at the same moment: on PostgreSQL transactions run side by side."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from primia.errors import Conflict
from primia.messages.rounds import RunRequest
from services.model_owner.rounds.start import start
from services.model_owner.studies import conduct, tasks
from tests.services.model_owner.studies.test_studies import RUN, search, show

# Long enough that the other has come to where it has to wait.
_MEANWHILE = 0.5
GROUPS = [["node-a"], ["node-b"], ["node-c"]]


@pytest.fixture
def each(each_federation):
    return each_federation.with_model()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as made:
        yield made


@pytest.fixture
def slowly(monkeypatch):
    """What starts a trial is still in its transaction when another begins."""

    def slow(*given):
        run = start(*given)
        time.sleep(_MEANWHILE)
        return run

    monkeypatch.setattr(conduct, "start", slow)


def nodes_of(each, study):
    return [each.show(trial["run"])["nodes"] for trial in show(each, study)["reports"]]


def test_a_run_that_is_being_started_takes_its_site_from_a_trial_and_from_no_other(each, pool):
    study = search(each, trials=3, groups=GROUPS)
    with each.ctx.db.session() as session:
        run = start(each.ctx, session, RunRequest.model_validate(RUN | {"nodes": ["node-b"]}), "x")
        advancing = pool.submit(tasks.advance, each.ctx, study)
        time.sleep(_MEANWHILE)
    advancing.result(60)
    assert nodes_of(each, study) == [["node-a"], ["node-c"]]
    found = show(each, study)
    assert found["reason"] == f"A trial waits: node-b takes part in run {run.id} already."


def test_studies_that_want_each_others_sites_share_them(each, pool, slowly):
    studies = [search(each, trials=3, groups=groups) for groups in (GROUPS, GROUPS[::-1])]
    for done in [pool.submit(tasks.advance, each.ctx, study) for study in studies]:
        done.result(60)
    started = [nodes_of(each, study) for study in studies]
    assert sorted(node for nodes in started for (node,) in nodes) == ["node-a", "node-b", "node-c"]
    assert all(show(each, study)["state"] == "running" for study in studies)


def test_of_two_runs_with_the_same_sites_the_second_is_told_of_the_first(each, pool):
    names = RUN["nodes"]
    first = RunRequest.model_validate(RUN)
    second = RunRequest.model_validate(RUN | {"nodes": names[::-1]})

    def late():
        with each.ctx.db.session() as session:
            start(each.ctx, session, second, "x")

    with each.ctx.db.session() as session:
        run = start(each.ctx, session, first, "x")
        waiting = pool.submit(late)
        time.sleep(_MEANWHILE)
    with pytest.raises(Conflict) as refused:
        waiting.result(60)
    assert refused.value.extra["run"] == run.id


def test_one_study_is_taken_forward_by_one_worker_at_a_time(each, pool, slowly):
    study = search(each, trials=3, groups=GROUPS)
    for done in [pool.submit(tasks.advance, each.ctx, study) for _ in range(2)]:
        done.result(60)
    found = show(each, study)
    assert [trial["number"] for trial in found["reports"]] == [0, 1, 2]
    assert nodes_of(each, study) == GROUPS
