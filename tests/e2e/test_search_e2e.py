"""A search for hyperparameters over real processes, and the report of its best trial repeated."""

from __future__ import annotations

import pytest

from primia.learning.config import LocalStopping, Schedule, ServerOptimiser
from primia.messages.rounds import RunRequest, TrainingSettings
from primia.messages.studies import Choice, FloatRange, StudyRequest
from tests.support.grid import SIDE, World
from tests.support.servers import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_a_search_a_run_with_every_kind_of_option_and_its_report(sqlite_world: World) -> None:
    world = sqlite_world
    model = world.model("searched")
    training = TrainingSettings(
        image_size=SIDE,
        batches=3,
        batch_size=8,
        optimiser="sgd",
        optimiser_state="kept",
        schedule=Schedule(kind="cosine", warm_up=0.1),
        clip_norm=5.0,
        mixup=0.2,
        label_smoothing=0.05,
        proximal=0.01,
        test_fraction=0.4,
        local_stopping=LocalStopping(patience=50),
    )
    run = RunRequest(
        model=model,
        version=1,
        nodes=world.names,
        rounds=2,
        training=training,
        server=ServerOptimiser(kind="fedavgm"),
        selection="best_loss",
        compare=(1,),
    )
    study = world.owner.start_study(
        StudyRequest(
            run=run,
            parameters={
                "training.learning_rate": FloatRange(low=1e-3, high=1e-1, log=True),
                "server.kind": Choice(values=("average", "fedavgm")),
            },
            trials=2,
        )
    ).id
    wait_until(lambda: world.owner.study(study).state != "running", 180, "the end of the search")
    found = world.owner.study(study)
    assert (found.state, found.done) == ("finished", 2), found.reason
    assert found.best is not None
    assert found.best.run is not None
    report = world.owner.report(found.best.run)
    assert {each.model for each in report.models} >= {"last", "version-1"}
    overall = report.models[0].overall
    assert overall.test is not None
    assert overall.test.samples > 0
    assert "data:image/png" in world.owner.report_page(found.best.run)
    assert world.owner.study_plot(study, "history").startswith(b"\x89PNG")
    again = world.owner.start_run(report.run.request)
    repeated = world.wait_run(again.id)
    assert repeated.state == "finished"
    assert repeated.final is not None
    assert report.run.final is not None
    assert repeated.final.loss == pytest.approx(report.run.final.loss, rel=1e-3)
