"""One split of a data set in all runs: what tests one model trains no other."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from primia.chassis.app import create_app
from primia.errors import Conflict
from services.data_node.datasets import store as datasets
from services.data_node.datasets.domain import Split, SplitOtherwise
from services.data_node.main import create_service
from tests.services.data_node.training.test_training_with_owner import (  # noqa: F401  # fixtures
    owner,
    play,
    sites,
)

TRAINING = {"image_size": 16, "batches": 1, "batch_size": 4}


def shown(node, cast) -> dict:
    app = TestClient(create_app(create_service(), node))
    return app.get("/datasets/chest", headers=cast.headers("alice", node.identity.name)).json()


def test_a_run_with_another_split_is_refused_with_the_reason(owner, sites, cast):  # noqa: F811
    model_owner, _ = owner
    assert shown(sites[0], cast)["split"] is None
    run = model_owner.start(training=TRAINING)
    play(model_owner, sites)
    assert model_owner.show(run)["state"] == "finished"
    assert shown(sites[0], cast)["split"] == {"validation": 0.2, "test": 0.0}
    for changes in ({"test_fraction": 0.1}, {"validation_fraction": 0.25}):
        other = model_owner.start(training={**TRAINING, **changes})
        play(model_owner, sites)
        refused = model_owner.show(other)
        assert refused["state"] == "failed"
        assert "This site splits the data set into other parts" in refused["reason"]
    same = model_owner.start(training=TRAINING)
    play(model_owner, sites)
    assert model_owner.show(same)["state"] == "finished"
    for node in sites:
        node.settings = node.settings.model_copy(update={"other_splits": True})
    allowed = model_owner.start(training={**TRAINING, "test_fraction": 0.1})
    play(model_owner, sites)
    assert model_owner.show(allowed)["state"] == "finished"
    assert shown(sites[0], cast)["split"] == {"validation": 0.2, "test": 0.0}


def test_the_first_run_fixes_the_split_unless_the_registration_has(lite_node):
    with lite_node.db.session() as session:
        rows = [
            datasets.register(
                session,
                dataset_id=str(number) * 32,
                name=f"set-{number}",
                kind="folder",
                place="/data",
                patient_pattern=None,
                bad_files="strict",
                now=lite_node.clock.now(),
                split=split,
            )
            for number, split in enumerate((None, Split(0.1, 0.3)))
        ]
        datasets.keep_split(rows[0], Split(0.2, 0.0), others=False)
        datasets.keep_split(rows[0], Split(0.2, 0.0), others=False)
        datasets.keep_split(rows[0], Split(0.5, 0.5), others=True)
        for row, wanted in ((rows[0], Split(0.2, 0.1)), (rows[1], Split(0.2, 0.0))):
            with pytest.raises(SplitOtherwise, match="would be trained on in another"):
                datasets.keep_split(row, wanted, others=False)
        assert (rows[0].validation_fraction, rows[0].test_fraction) == (0.2, 0.0)


def test_a_data_set_that_is_removed_meanwhile_cannot_be_held(lite_node):
    with lite_node.db.session() as session:
        row = datasets.register(
            session,
            dataset_id="1" * 32,
            name="chest",
            kind="folder",
            place="/data",
            patient_pattern=None,
            bad_files="strict",
            now=lite_node.clock.now(),
        )
        row.state = "ready"
    with lite_node.db.session() as session:
        datasets.remove(session, datasets.find(session, "chest"))
    with lite_node.db.session() as session, pytest.raises(Conflict, match="just been removed"):
        datasets.lock_ready(session, row)
