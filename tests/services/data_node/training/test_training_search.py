"""A search over real data nodes: each trial is charged to their ledgers, and ends at the limit."""

from __future__ import annotations

from services.data_node.privacy import store as ledger
from services.model_owner.studies import tasks
from tests.services.data_node.training.test_training_privacy import (
    TRAINING,
    account,
    limited,
    with_group_norm,
)
from tests.services.data_node.training.test_training_with_owner import (  # noqa: F401  # fixtures
    owner,
    play,
    sites,
)

RATES = {"training.learning_rate": {"kind": "float", "low": 1e-4, "high": 1e-2, "log": True}}


def conduct(model_owner, sites, body: dict) -> dict:  # noqa: F811
    """A search until its end."""
    answer = model_owner.user("POST", "/studies", json=body)
    assert answer.status_code == 202, answer.text
    study = answer.json()["id"]
    for _ in range(20):
        tasks.advance(model_owner.ctx, study)
        play(model_owner, sites)
        found = model_owner.user("GET", f"/studies/{study}").json()
        if found["state"] != "running":
            return found
    raise AssertionError("the search goes on and on")


def test_trials_are_charged_until_the_sites_limit(owner, sites, cast):  # noqa: F811
    model_owner, _ = owner
    limited(sites, privacy_epsilon=3.0)  # of two trials 2.8, of three 3.4
    run = {
        "model": with_group_norm(model_owner),
        "nodes": [node.identity.name for node in sites],
        "rounds": 1,
        "training": TRAINING,
        "privacy": {"dp_sgd": {"noise_multiplier": 2.0}},
    }
    wanted = {"run": run, "parameters": RATES, "trials": 3, "pruning": {"kind": "none"}}
    found = conduct(model_owner, sites, wanted)
    states = [trial["state"] for trial in found["reports"]]
    assert (found["state"], states) == ("finished", ["complete", "complete", "failed"])
    assert "privacy limit does not allow the run" in found["reports"][2]["reason"]
    done = [trial["run"] for trial in found["reports"][:2]]
    for node in sites:
        spent = account(node, cast)
        assert [each["run"] for each in spent["runs"]] == done
        single = [each["epsilon"] for each in spent["runs"]]
        assert max(single) < spent["epsilon"] < min(sum(single), spent["limit"])
        assert 0 < spent["left"] < min(single)
        with node.db.reading() as session:
            assert len(ledger.charges(session)) == 2
