"""Rounds of more sites, each of which masks with some neighbours."""

from __future__ import annotations

import numpy as np
import pytest

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
