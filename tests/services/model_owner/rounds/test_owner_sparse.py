"""Rounds of more sites, each of which masks with some neighbours."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from primia.aggregation.roster import Roster
from primia.aggregation.terms import Assumed
from primia.cli.rounds import tables
from primia.messages.runs import RunReport
from services.model_owner.rounds import views
from services.model_owner.rounds.tables import Contribution, Round
from tests.services.model_owner.federation import Federation, exact_mean

SPARSE = {"graph": "sparse", "sparse": {"colluding": 0.05, "lost": 0.05}}


@pytest.fixture
def sites(federation: Federation) -> tuple[str, ...]:
    return federation.with_model().join(9)


def test_a_run_with_a_sparse_graph_survives_a_lost_site(federation: Federation, sites):
    run = federation.start(nodes=list(sites), aggregation=SPARSE, rounds=1)
    federation.until("upload", *sites)
    staying = sites[:-1]
    federation.turn(*staying)
    federation.forward()
    federation.run_out(*staying)
    federation.forward()  # the final evaluation waits for the lost one, too
    found = federation.show(run)
    assert found["state"] == "finished", found
    assert found["threshold"] == 7  # more than half of 12, one of them colluding
    envelopes = federation.nodes[sites[0]].places[run, 1].state.holdings
    assert len(envelopes) == 7  # six neighbours and itself
    mean = exact_mean(federation, 1, staying)
    wanted = federation.version_weights(1) + mean
    np.testing.assert_allclose(federation.version_weights(2), wanted, atol=1e-6)


def test_the_proposal_says_what_the_graph_withstands(federation: Federation, sites):
    run = federation.start(nodes=list(sites), aggregation=SPARSE)
    item = federation.nodes[sites[0]].ask()
    assert item.proposal.sparse.colluding == 0.05
    assert item.proposal.assumed().colluding == 1
    assert federation.show(run)["request"]["aggregation"]["graph"] == "sparse"


def test_the_view_of_a_round_says_what_graph_its_keys_make(federation: Federation, sites):
    """The second round's is of one site less, for one advertises no keys."""
    run = federation.start(nodes=list(sites), aggregation=SPARSE, rounds=2)
    federation.until("train", *sites)
    assert graphs(federation, run) == [None]
    federation.until("upload", *sites)
    mine = federation.nodes[sites[0]].places[run, 1].state.roster
    assert graphs(federation, run) == [shown(mine)]
    federation.until("train", *sites, number=2)
    staying = sites[:-1]
    federation.turn(*staying)
    federation.forward()
    federation.run_out(*staying)
    federation.forward()
    theirs = federation.nodes[sites[0]].places[run, 2].state.roster
    assert (len(mine.nodes), len(theirs.nodes)) == (12, 11)
    assert graphs(federation, run) == [shown(mine), shown(theirs)]
    found = RunReport.model_validate_json(federation.user("GET", f"/rounds/{run}").content)
    page = federation.user("GET", f"/rounds/{run}/report.html").text
    console = Console(width=200)
    with console.capture() as printed:
        console.print(tables(found))
    for text in (printed.get(), page):
        assert text.count(f"k = {mine.graph.degree.neighbours}, τ = {mine.share_threshold}") >= 1


def graphs(federation: Federation, run: str) -> list[dict | None]:
    return [each["graph"] for each in federation.show(run)["reports"]]


def shown(roster: Roster) -> dict:
    graph = {"neighbours": len(roster.graph.holders(roster.nodes[0])) - 1}
    return {"sites": len(roster.nodes), **graph, "share_threshold": roster.share_threshold}


@pytest.mark.parametrize(
    ("secure", "phase", "stage", "sites", "wanted"),
    [
        (True, "sharing", 1, 12, (6, 2)),
        (True, "abandoned", 2, 12, (6, 2)),
        (True, "abandoned", 1, 12, None),  # while it still trained: no roster was made
        (True, "training", 1, 12, None),
        (True, "done", 6, 7, (6, 7)),  # too few for a sparse one: all mask with all
        (False, "done", 4, 12, None),
    ],
)
def test_a_graph_is_shown_once_the_roster_is_complete(secure, phase, stage, sites, wanted):
    proposal = SimpleNamespace(assumed=lambda measuring: Assumed(1, 1))
    row = Round(secure=secure, phase=phase, purpose="train", needed=7)
    rows = [Contribution(stage=stage)] * sites + [Contribution(stage=0)]
    found = views._graph(proposal, row, rows)
    if wanted is None:
        assert found is None
        return
    assert (found.sites, found.neighbours, found.share_threshold) == (sites, *wanted)


def test_a_complete_graph_is_not_told_of(federation: Federation):
    run = federation.with_model().start()
    federation.run_out()
    assert graphs(federation, run) == [None]


def test_too_few_sites_for_a_sparse_graph_are_refused_at_once(federation: Federation):
    federation.with_model()
    body = {
        "model": "chest",
        "nodes": ["node-a", "node-b", "node-c"],
        "rounds": 1,
        "aggregation": {"graph": "sparse"},
    }
    answer = federation.user("POST", "/rounds", json=body)
    assert answer.status_code == 422
    assert "all others as neighbours" in answer.json()["detail"]
