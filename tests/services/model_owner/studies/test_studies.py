"""Searches over the owner's real app and tasks, with nodes whose losses follow the parameters."""

from __future__ import annotations

import json
import math

import pytest

from services.model_owner.rounds import store as rounds
from services.model_owner.studies import tasks
from tests.services.model_owner.federation import NODES, Federation

RATES = {"training.learning_rate": {"kind": "float", "low": 1e-5, "high": 1e-1, "log": True}}
WEIGHTS, VERSIONS = "/models/chest/versions/1/weights", "/models/chest/versions"
CENTRAL = {"privacy": {"central": {"clip_norm": 1.0, "noise_multiplier": 1.0}}}
SECURELY = {"aggregation": {"secure": True}}
RUN = {
    "model": "chest",
    "nodes": list(NODES),
    "rounds": 1,
    "training": {"image_size": 16},
    "aggregation": {"secure": False},
}


def choice(*values) -> dict:
    return {"kind": "choice", "values": values}


def body(**changes) -> dict:
    run = {**RUN, **changes.pop("run", {})}
    return {"run": run, "parameters": RATES, "trials": 3, **changes}


def search(federation: Federation, **changes) -> str:
    answer = federation.user("POST", "/studies", json=body(**changes))
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == f"/studies/{answer.json()['id']}"
    return answer.json()["id"]


def show(federation: Federation, study: str) -> dict:
    answer = federation.user("GET", f"/studies/{study}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def conduct(federation: Federation, study: str, *, turns: int = 300) -> dict:
    """Sweep and let the nodes work until the study is over (or for so many turns)."""
    for _ in range(turns):
        tasks.advance(federation.ctx, study)
        if show(federation, study)["state"] != "running":
            break
        _set_losses(federation)
        federation.turn()
    federation.run_out()
    return show(federation, study)


def _set_losses(federation: Federation) -> None:
    """The further the rate is from 10^-3, the worse: a loss that is the same in every round."""
    for node in federation.nodes.values():
        for run, proposal in node.proposals.items():
            with federation.ctx.db.reading() as session:
                if rounds.find(session, run).state in ("running", "evaluating"):
                    loss = 0.1 + abs(math.log10(proposal.training.learning_rate) + 3)
                    node.losses = {"last": loss, **dict.fromkeys(range(1, 20), loss)}


def test_a_search_finds_a_good_rate_and_keeps_no_models(federation):
    federation.with_model()
    study = search(federation, trials=12, pruning={"kind": "none"})
    found = conduct(federation, study)
    assert (found["state"], found["done"]) == ("finished", 12)
    values = [trial["value"] for trial in found["reports"]]
    assert found["best"]["value"] == min(values) < 1
    rates = {trial["parameters"]["training.learning_rate"] for trial in found["reports"]}
    assert len(rates) == 12
    assert found["importance"] == {"training.learning_rate": 1}
    assert federation.user("GET", "/models/chest/versions/2").status_code == 404
    for kind in ("history", "importance"):
        png = federation.user("GET", f"/studies/{study}/plots/{kind}.png")
        assert png.content.startswith(b"\x89PNG")


def test_trials_that_fall_behind_are_pruned_between_rounds(federation):
    federation.with_model()
    study = search(
        federation,
        trials=8,
        run={"rounds": 4},
        sampler="random",
        pruning={"kind": "median", "startup_trials": 3, "warmup_rounds": 0},
    )
    found = conduct(federation, study)
    states = [trial["state"] for trial in found["reports"]]
    assert set(states) == {"complete", "pruned"}
    for trial in found["reports"]:
        if trial["state"] == "pruned":
            run = federation.show(trial["run"])
            assert run["state"] == "cancelled"
            assert run["rounds_done"] < 4


def test_trials_run_side_by_side_on_groups_of_sites(federation):
    federation.with_model()
    study = search(federation, trials=4, groups=[["node-a"], ["node-b"], ["node-c"]])
    tasks.advance(federation.ctx, study)
    assert [trial["state"] for trial in show(federation, study)["reports"]] == ["running"] * 3
    found = conduct(federation, study)
    assert (found["state"], found["done"]) == ("finished", 4)


def test_a_grid_is_gone_through_once(federation):
    federation.with_model()
    grid = {
        "training.optimiser": {"kind": "choice", "values": ["sgd", "adam"]},
        "training.batch_size": {"kind": "int", "low": 8, "high": 16, "step": 8},
    }
    study = search(federation, parameters=grid, trials=50, sampler="grid")
    found = conduct(federation, study)
    cells = {tuple(trial["parameters"].values()) for trial in found["reports"]}
    assert (found["state"], len(found["reports"]), len(cells)) == ("finished", 4, 4)


def test_whole_groups_of_settings_lists_and_null_are_searched(federation):
    federation.with_model()
    drawn = {
        "server": choice({"kind": "average"}, {"kind": "fedadam", "learning_rate": 0.05}),
        "training.class_weights": choice([1, 3], None),
        "training.local_stopping": choice(None, {"patience": 2}),
        "training.learning_rate": choice(1e-3, 1e-2),
    }
    study = search(federation, parameters=drawn, trials=50, sampler="grid")
    found = conduct(federation, study)
    assert (found["state"], len(found["reports"])) == ("finished", 16)
    cells = {json.dumps(trial["parameters"]) for trial in found["reports"]}
    assert len(cells) == 16
    assert set(found["importance"]) == set(drawn)
    for trial in found["reports"]:
        request = federation.show(trial["run"])["request"]
        wanted = trial["parameters"]
        assert request["server"] == {**request["server"], **wanted["server"]}
        assert request["training"]["class_weights"] == wanted["training.class_weights"]
        stopping = wanted["training.local_stopping"]
        assert (request["training"]["local_stopping"] is None) == (stopping is None)


def test_a_rate_is_searched_beside_the_kinds_that_have_one(federation):
    federation.with_model()
    drawn = {
        "server.kind": choice("fedadam", "fedyogi"),
        "server.learning_rate": {"kind": "float", "low": 0.01, "high": 0.1},
    }
    search(federation, parameters=drawn, run={"server": {"kind": "average"}})


def test_of_many_parameters_each_value_is_tried(federation):
    federation.with_model()
    names = ("rotation", "shear", "mirror", "flip", "blur", "cutout", "clahe", "equalise", "noise")
    drawn = {f"training.augmentation.{name}": choice(0, 0.1, 0.2) for name in names}
    search(federation, parameters=drawn)
    drawn["training.augmentation.noise"] = choice(0, 9, 0.1)
    answer = federation.user("POST", "/studies", json=body(parameters=drawn))
    assert (answer.status_code, "training.augmentation.noise 9" in answer.text) == (422, True)


def test_a_search_goes_on_after_its_end_and_after_a_crash(federation, monkeypatch):
    federation.with_model()
    study = search(federation, trials=2)
    with monkeypatch.context() as patch:
        patch.setattr("services.model_owner.studies.conduct.start", _die)
        with pytest.raises(RuntimeError):
            tasks.advance(federation.ctx, study)
    assert show(federation, study)["reports"] == []
    first = conduct(federation, study)
    assert first["state"] == "finished"
    answer = federation.user("POST", f"/studies/{study}/trials", json={"trials": 2})
    assert answer.status_code == 202
    found = conduct(federation, study)
    assert (found["state"], found["done"], found["trials"]) == ("finished", 4, 4)
    assert found["reports"][:2] == first["reports"]


def _die(*_args: object) -> None:
    raise RuntimeError("killed")


def test_a_cancelled_search_cancels_its_runs(federation):
    federation.with_model()
    study = search(federation)
    tasks.advance(federation.ctx, study)
    answer = federation.user("DELETE", f"/studies/{study}")
    assert answer.json()["state"] == "cancelled"
    (trial,) = show(federation, study)["reports"]
    assert federation.show(trial["run"])["state"] == "cancelled"
    assert (
        federation.user("POST", f"/studies/{study}/trials", json={"trials": 1}).status_code == 409
    )


def test_a_search_whose_trials_all_fail_ends_with_the_reason(federation):
    federation.with_model()
    for node in federation.nodes.values():
        node.classes = ("cat", "dog")
    study = search(federation, trials=50)
    found = conduct(federation, study)
    assert (found["state"], found["done"]) == ("failed", 3)
    assert "labels" in found["reason"]


def test_a_hopeless_search_has_a_fresh_chance_when_it_is_continued(federation):
    federation.with_model()
    for node in federation.nodes.values():
        node.classes = ("cat", "dog")
    study = search(federation, trials=3)
    assert conduct(federation, study)["state"] == "failed"
    more = {"trials": 4}
    assert federation.user("POST", f"/studies/{study}/trials", json=more).status_code == 202
    again = conduct(federation, study)  # nothing has been mended: it gives up after three more
    assert (again["state"], again["done"]) == ("failed", 6)
    for node in federation.nodes.values():
        node.classes = ("normal", "pneumonia")
    assert federation.user("POST", f"/studies/{study}/trials", json=more).status_code == 202
    found = conduct(federation, study)
    assert (found["state"], found["reason"], found["done"]) == ("finished", "", 11)
    assert {trial["state"] for trial in found["reports"][6:]} == {"complete"}


def test_a_trial_waits_for_sites_that_are_in_another_run(federation):
    federation.with_model()
    run = federation.start(**{key: RUN[key] for key in ("aggregation",)})
    study = search(federation, trials=1)
    tasks.advance(federation.ctx, study)
    waiting = show(federation, study)
    assert (waiting["state"], waiting["reports"]) == ("running", [])
    assert waiting["reason"] == f"A trial waits: node-a takes part in run {run} already."
    federation.run_out()
    assert federation.show(run)["state"] == "finished"
    tasks.advance(federation.ctx, study)
    assert show(federation, study)["reason"] == ""
    assert conduct(federation, study)["state"] == "finished"


def test_groups_whose_sites_are_free_do_not_wait_for_others(federation):
    federation.with_model()
    run = federation.start(nodes=["node-a"], aggregation={"secure": False})
    study = search(federation, trials=4, groups=[["node-a"], ["node-b"], ["node-c"]])
    tasks.advance(federation.ctx, study)
    found = show(federation, study)
    nodes = [federation.show(trial["run"])["nodes"] for trial in found["reports"]]
    assert nodes == [["node-b"], ["node-c"]]
    assert run in found["reason"]
    assert conduct(federation, study)["done"] == 4


def test_every_trial_of_a_search_over_models_starts_from_its_own_models_version(federation):
    federation.with_model()
    federation.with_model("lung")
    weights = federation.user("GET", "/models/lung/versions/1/weights").content
    upload = federation.user("POST", "/models/lung/versions", content=weights)
    assert upload.status_code == 202, upload.text
    models = {"model": {"kind": "choice", "values": ["chest", "lung"]}}
    preparing = federation.user("POST", "/studies", json=body(parameters=models, sampler="grid"))
    assert preparing.status_code == 202  # from version 1: the newest that is ready
    federation.user("DELETE", f"/studies/{preparing.json()['id']}")
    federation.work()
    study = search(federation, parameters=models, sampler="grid", trials=2)
    again = federation.user("POST", "/models/lung/versions", content=weights)
    assert again.status_code == 202  # what comes meanwhile changes nothing
    federation.work()
    found = conduct(federation, study)
    runs = [federation.show(trial["run"]) for trial in found["reports"]]
    assert {(run["model"], run["version"]) for run in runs} == {("chest", 1), ("lung", 2)}
    assert found["state"] == "finished"


def test_a_trial_of_a_version_that_failed_fails_and_does_not_wait(federation):
    federation.with_model()
    for content in (b"no weights", federation.user("GET", WEIGHTS).content):
        assert federation.user("POST", VERSIONS, content=content).status_code == 202
        federation.work()
    versions = {"version": {"kind": "int", "low": 1, "high": 3}}
    study = search(federation, parameters=versions, sampler="grid", trials=3)
    found = conduct(federation, study)
    assert found["state"] == "finished"
    said = {trial["parameters"]["version"]: trial for trial in found["reports"]}
    assert [said[version]["state"] for version in (1, 2, 3)] == ["complete", "failed", "complete"]
    assert "Version 2 of model chest is failed" in said[2]["reason"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run": {"model": "liver"}}, "liver"),
        ({"run": {"rounds": 0}}, "at least one round"),
        ({"parameters": {}}, "parameters"),
        ({"parameters": {"training.colour": RATES["training.learning_rate"]}}, "colour"),
        ({"parameters": {"nothing.rate": RATES["training.learning_rate"]}}, "nothing"),
        (
            {"parameters": {"training.learning_rate": {"kind": "float", "low": 0.1, "high": 99}}},
            "learning_rate",
        ),
        (
            {"parameters": {"training.learning_rate": {"kind": "float", "low": 2, "high": 1}}},
            "low is below high",
        ),
        ({"parameters": RATES, "sampler": "grid"}, "grid"),
        ({"groups": [["node-a"], ["node-a", "node-b"]]}, "two groups"),
        ({"trials": 0}, "trials"),
        ({"run": CENTRAL | SECURELY}, "no score leaves a site"),
        (
            {
                "run": SECURELY,
                "parameters": {
                    f"privacy.central.{name}": {"kind": "float", "low": 0.5, "high": 2}
                    for name in ("clip_norm", "noise_multiplier")
                },
            },
            "no score leaves a site",
        ),
        ({"run": {"training": {"image_size": 16, "validation_fraction": 0}}}, "the fraction is 0"),
        (
            {
                "parameters": {
                    "training.validation_fraction": {"kind": "float", "low": 0, "high": 0.2}
                }
            },
            "the fraction is 0",
        ),
        ({"parameters": {"rounds": {"kind": "int", "low": 0, "high": 2}}}, "at least one round"),
        ({"parameters": {"keep": {"kind": "choice", "values": [True, False]}}}, "not kept"),
        ({"parameters": {"model": {"kind": "choice", "values": ["chest", "liver"]}}}, "liver"),
        ({"parameters": {"model": {"kind": "int", "low": 1, "high": 2}}}, "models' names"),
        (
            {
                "run": {"version": 1},
                "parameters": {"model": {"kind": "choice", "values": ["chest", "lung"]}},
            },
            "each one's newest",
        ),
        ({"parameters": {"version": {"kind": "int", "low": 1, "high": 9}}}, "version 9"),
        ({"parameters": {"version": {"kind": "choice", "values": [1, 1.5]}}}, "version"),
        ({"parameters": {"nodes": choice(["node-a", "node-b"], ["node-b"])}}, "groups"),
        ({"parameters": {"training.optimiser": choice("sgd", "adamm", "adam")}}, '"adamm"'),
        (
            {
                "parameters": {
                    "server.kind": choice("fedadam", "average", "fedyogi"),
                    "server.learning_rate": {"kind": "float", "low": 0.01, "high": 0.1},
                }
            },
            'server.kind "average"',
        ),
        (
            {
                "parameters": {
                    "training.schedule": choice({"kind": "cosine"}, {"kind": "linear"}),
                    "training.schedule.warm_up": {"kind": "float", "low": 0, "high": 0.2},
                }
            },
            "drawn twice",
        ),
        ({"parameters": {"training.class_weights": choice([1, 1], [1, 1, 2])}}, "3 class weights"),
        ({"run": {"privacy": {"dp_sgd": {"epsilon": 8}}}}, "BatchNorm"),
        ({"run": {"nodes": ["node-a", "node-x"]}}, "node-x"),
        ({"groups": [["node-a"], ["node-x"]]}, "node-x"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_any_trial(federation, changes, said):
    federation.with_model()
    answer = federation.user("POST", "/studies", json=body(**changes))
    assert answer.status_code in (404, 422)
    assert said in answer.text.replace('\\"', '"')
    assert federation.user("GET", "/studies").json()["studies"] == []
