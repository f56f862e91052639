"""A MONAI bundle at each site in secure rounds with the real owner, who has its layout alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from primia.learning import bundles
from primia.learning.layout import Layout, Vector, read_state, write_state
from services.data_node.training import store
from tests.services.data_node.training.test_training_with_owner import (  # noqa: F401  # fixtures
    CLASSES,
    owner,
    play,
    sites,
)
from tests.services.model_owner.federation import BINARY
from tests.services.model_owner.rounds.test_owner_bad_answers import assert_problem
from tests.support.bundles import write_bundle

TRAINING = {"image_size": 16, "epochs": 1}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


def registered(model_owner, bundle: Path) -> tuple[Layout, Vector]:
    """As version 2 of an external model."""
    layout, first = bundles.read_network(bundle)
    tensors = [{"name": s.name, "shape": s.shape, "group": s.group} for s in layout.slots]
    body = {"name": "own", "architecture": "external", "classes": CLASSES, "image_size": 16}
    answer = model_owner.user("POST", "/models", json={**body, "layout": tensors})
    assert answer.status_code == 202, answer.text
    model_owner.work()
    content = write_state(first, layout)
    model_owner.user("POST", "/models/own/versions", content=content, headers=BINARY)
    model_owner.work()
    return layout, first


def enable(sites, layout: Layout, folder: Path, **settings) -> None:  # noqa: F811
    for node in sites:
        update = {"bundles": {layout.digest: folder}, **settings}
        node.settings = node.settings.model_copy(update=update)


def test_a_bundle_trains_in_secure_rounds(owner, sites, bundle):  # noqa: F811
    model_owner, _ = owner
    layout, first = registered(model_owner, bundle)
    enable(sites[:2], layout, bundle, share_scores="own")
    enable(sites[2:], layout, bundle)
    run = model_owner.start(model="own", rounds=2, training=TRAINING)
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert (shown["state"], shown["reason"], shown["secure"]) == ("finished", "", True)
    assert {site["samples"] for site in shown["reports"][0]["sites"]} == {12}
    path = f"/models/own/versions/{shown['final_version']}/weights"
    trained = read_state(model_owner.user("GET", path).content, layout)
    assert np.abs(trained - first).max() > 1e-3
    *open_, closed = [site["final"]["accuracy"] for site in shown["sites"]]
    assert all(0 <= accuracy <= 1 for accuracy in open_)
    assert closed is None  # no sum to hide in


def test_a_site_that_has_not_enabled_a_bundle_refuses(owner, sites, bundle):  # noqa: F811
    model_owner, _ = owner
    layout, _ = registered(model_owner, bundle)
    run = model_owner.start(model="own", training=TRAINING)
    play(model_owner, sites)
    reason = model_owner.show(run)["reason"]
    assert f"no bundle for the layout {layout.digest}" in reason


def test_a_bundle_that_fails_costs_its_site_and_tells_no_detail(owner, sites, bundle, tmp_path):  # noqa: F811
    model_owner, _ = owner
    layout, _ = registered(model_owner, bundle)
    enable(sites[:2], layout, bundle)
    failing = write_bundle(tmp_path / "person-7")
    train = json.loads((failing / "configs/train.json").read_text())
    train["labels"] = ["person-7", "person-8"]  # there are no such folders
    (failing / "configs/train.json").write_text(json.dumps(train))
    enable(sites[2:], layout, failing)
    run = model_owner.start(model="own", training=TRAINING)
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert shown["state"] == "finished"
    (site,) = [each for each in shown["reports"][0]["sites"] if each["node"] == "node-c"]
    assert "bundle-failed" in site["dropped"]
    assert "person-7" not in str(shown)
    with sites[2].db.reading() as session:
        assert store.find_run(session, run).rounds_done < 2


def test_a_bundle_of_another_network_is_refused_in_review(owner, sites, bundle, tmp_path):  # noqa: F811
    """Before any site has trained."""
    model_owner, _ = owner
    layout, _ = registered(model_owner, bundle)
    enable(sites[:2], layout, bundle)
    enable(sites[2:], layout, write_bundle(tmp_path / "person-7", channels=(4, 6)))
    run = model_owner.start(model="own", training=TRAINING)
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert shown["state"] == "finished"
    *accepted, refused = shown["sites"]
    assert [site["state"] for site in accepted] == ["accepted"] * 2
    assert (refused["state"], refused["reason"]) == (
        "refused",
        "The bundle's network is not the model.",
    )
    assert "person-7" not in str(shown)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"training": {**TRAINING, "optimiser": "sgd"}}, "training.optimiser"),
        ({"training": {**TRAINING, "epochs": None, "batches": 3}}, "training.batches"),
        ({"privacy": {"dp_sgd": {"epsilon": 3.0}}}, "by code of their own"),
        ({"statistics": {"normalise": True}}, "statistics"),
        ({"selection": "best_loss"}, "selection"),
    ],
)
def test_settings_that_the_sites_trainer_would_not_follow_are_refused(
    owner, bundle, change, named  # noqa: F811
):  # fmt: skip
    model_owner, _ = owner
    registered(model_owner, bundle)
    body = {"model": "own", "nodes": ["node-a", "node-b"], "rounds": 1, "training": TRAINING}
    answer = model_owner.user("POST", "/rounds", json={**body, **change})
    assert_problem(answer, 422, "invalid-input")
    assert named in answer.json()["detail"]
