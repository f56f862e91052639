"""The real model owner's app and tasks with real data nodes, in one process: both sides of the wire
contract meet, without Celery."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from rich.console import Console

from primia.chassis import migrate
from primia.chassis.app import create_app
from primia.cli.rounds import tables
from primia.learning import images
from primia.learning.cache import load_sizes
from primia.learning.manifest import DatasetManifest, split
from primia.learning.statistics import Statistics, measure
from primia.messages.runs import RunDocument, RunReport
from services.data_node.datasets import store as datasets
from services.data_node.training import store
from services.model_owner.main import create_service
from services.model_owner.settings import ModelOwnerSettings
from tests.services.data_node.training.conftest import NAMES, add_dataset, turn
from tests.services.model_owner.federation import Federation as Owner
from tests.support.contexts import Cast
from tests.support.owner_double import serving
from tests.support.radiographs import draw

CLASSES = ("normal", "pneumonia")


@pytest.fixture
def owner(cast: Cast, broker_url: str):
    """The owner with a model and its URL."""
    service = create_service()
    ctx = cast.context("model_owner", "model-owner", ModelOwnerSettings, broker_url)
    migrate.upgrade(ctx.db, service.migrations)
    app = create_app(service, ctx)
    with serving(app) as url:
        # The routes alone: the app's own lifespan runs under the server.
        yield Owner(ctx, cast, TestClient(app)).with_model(), url
    ctx.close()


@pytest.fixture
def sites(make_node, owner, images_root: Path):
    made = []
    for number, name in enumerate(NAMES):
        node = make_node(name, owner_url=owner[1], approval="auto", accept_plain_updates=True)
        root = draw(images_root / name, 6, seed=number, classes=("normal", "pneumonia"))
        add_dataset(node, root)
        made.append(node)
    return made


def play(owner: Owner, sites) -> None:
    """Turn by turn until nobody has anything to do."""
    for _ in range(100):
        owner.work()
        if not [row for row in [turn(node) for node in sites] if row is not None]:
            return
    raise AssertionError("the run goes on and on")


@pytest.mark.parametrize("secure", [True, False])
def test_a_run_from_start_to_end(owner, sites, secure: bool):
    model_owner, _ = owner
    run = model_owner.start(
        rounds=2,
        training={"image_size": 16, "batches": 2, "batch_size": 4},
        aggregation={"secure": secure},
    )
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert (shown["state"], shown["reason"], shown["rounds_done"]) == ("finished", "", 2)
    for node in sites:
        with node.db.reading() as session:
            row = store.find_run(session, run)
        assert (row.state, row.rounds_done, row.error_code) == ("finished", 2, None)


def test_a_site_whose_images_have_changed_drops_out_and_the_run_goes_on(
    owner, sites, images_root: Path
):
    model_owner, _ = owner
    run = model_owner.start(training={"image_size": 16, "batches": 1, "batch_size": 4})
    next((images_root / "node-c" / "normal").glob("*.png")).write_bytes(b"changed")
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert shown["state"] == "finished"
    (site,) = [s for s in shown["reports"][0]["sites"] if s["node"] == "node-c"]
    assert "data-set-changed" in site["dropped"]
    assert "person" not in str(shown)
    page = model_owner.user("GET", f"/rounds/{run}/report.html").text
    assert f"<td>1</td><td>node-c</td><td>{site['dropped']}</td>" in page


def test_a_site_that_cannot_train_is_named_with_its_reason_where_the_run_goes_on(owner, sites):
    """The other two are enough: nobody would look for a reason otherwise."""
    model_owner, _ = owner
    node = sites[2]
    with node.db.session() as session:
        datasets.remove(session, datasets.find(session, "chest"))
    add_dataset(node, draw(Path(node.settings.data_roots[0]) / "few", 2, seed=9, classes=CLASSES))
    run = model_owner.start(training={"image_size": 16, "batches": 1, "batch_size": 8})
    play(model_owner, sites)
    shown = RunReport.model_validate(model_owner.show(run))
    assert shown.state == "finished"
    said = "node-c refused (A batch is larger than the site's training images.)"
    assert shown.absent == [said]
    console = Console(width=200)
    with console.capture() as printed:
        console.print(tables(shown))
    assert f"Without: {said}." in printed.get()
    assert escape(said) in model_owner.user("GET", f"/rounds/{run}/report.html").text


def exact_statistics(sites) -> Statistics:
    """Of the sites' training images together, in the open."""
    totals = []
    for node in sites:
        with node.db.reading() as session:
            (row,) = datasets.listing(session, "ready")
            manifest = DatasetManifest.of(datasets.manifest(session, row).entries, CLASSES)
        part, _ = split(manifest, 0.2, 0)
        root = Path(row.place)
        pixels = np.stack([images.load(root / entry.path, 16, 1) for entry in part.entries])
        sizes = load_sizes(part, root)
        totals.append(measure(pixels, part.labels(), sizes, len(CLASSES)))
    return Statistics.of(np.sum(totals, axis=0, dtype=np.uint64), len(CLASSES), 1, 16)


@pytest.mark.parametrize("secure", [True, False])
def test_statistics_of_all_sites_are_measured_and_used(owner, sites, secure: bool):
    model_owner, _ = owner
    run = model_owner.start(
        training={"image_size": 16, "batches": 2, "batch_size": 4},
        aggregation={"secure": secure},
        statistics={"normalise": True, "class_weights": True},
    )
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert (shown["state"], shown["reason"], shown["rounds_done"]) == ("finished", "", 1)
    assert [report["purpose"] for report in shown["reports"]] == ["measure", "train"]
    exact = exact_statistics(sites)
    assert Statistics.model_validate(shown["statistics"]) == exact
    page = model_owner.user("GET", f"/rounds/{run}/report.html").text
    assert f"{exact.images}: {exact.counts[0]} normal, {exact.counts[1]} pneumonia; mean" in page
    assert (shown["reports"][1]["quantisation_step"] is not None) == secure
    mean, std = exact.normalisation()
    version = model_owner.user("GET", f"/models/chest/versions/{shown['final_version']}").json()
    assert version["normalisation"] == {"mean": list(mean), "std": list(std)}
    again = model_owner.start(training={"image_size": 16, "batches": 1, "batch_size": 4})
    card = model_owner.row(again).proposal["model"]
    assert (card["mean"], card["deviation"]) == (list(mean), list(std))
    for node in sites:
        with node.db.reading() as session:
            assert store.find_run(session, run).rounds_done == 1


def test_a_site_below_its_minimum_gives_no_statistics(owner, sites):
    model_owner, _ = owner
    small = sites[2]
    small.settings = small.settings.model_copy(update={"statistics_minimum": 1000})
    run = model_owner.start(
        training={"image_size": 16, "batches": 2, "batch_size": 4},
        statistics={"normalise": True},
    )
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert shown["state"] == "finished"
    (site,) = [each for each in shown["sites"] if each["node"] == "node-c"]
    assert (site["state"], site["reason"]) == ("refused", "Too few images at this site.")


def test_statistics_are_given_once_a_run(owner, sites):
    """An owner that has opened a sum and pretends that it has not gets no second one."""
    model_owner, _ = owner
    run = model_owner.start(
        training={"image_size": 16, "batches": 2, "batch_size": 4},
        statistics={"normalise": True},
    )
    for node in sites:
        turn(node)  # approved
        with node.db.session() as session:
            store.begin_measuring(session, run, 1, node.clock.now()).phase = "revealed"
    play(model_owner, sites)
    shown = model_owner.show(run)
    assert shown["state"] == "failed"
    for report in shown["reports"]:
        reasons = [site["dropped"] for site in report["sites"] if site["dropped"]]
        assert len(reasons) >= 2
        assert all("given its statistics" in reason for reason in reasons)


def test_a_run_is_reported_with_figures_and_repeated_from_its_report(owner, sites):
    model_owner, _ = owner
    for node in sites:
        update = {"statistics_minimum": 1, "share_scores": "own"}
        node.settings = node.settings.model_copy(update=update)
    training = {"image_size": 16, "batches": 2, "batch_size": 4, "test_fraction": 0.3}
    run = model_owner.start(rounds=2, training=training, selection="best_loss", compare=[1])
    play(model_owner, sites)
    answer = model_owner.user("GET", f"/rounds/{run}/report")
    assert answer.status_code == 200, answer.text
    report = RunDocument.model_validate_json(answer.content)
    models = {each.model: each for each in report.models}
    assert {"last", "version-1"} <= set(models) <= {"last", "best", "version-1"}
    assert report.chosen in models
    for found in models.values():
        assert set(found.sites) == set(NAMES)
        for part in ("validation", "test"):
            overall = getattr(found.overall, part)
            each = [getattr(site, part) for site in found.sites.values()]
            assert overall.samples == sum(one.samples for one in each)
            right = sum(one.accuracy.value * one.samples for one in each)
            assert overall.accuracy.value == pytest.approx(right / overall.samples)
    chosen = models[report.chosen].overall.validation
    assert chosen is not None
    assert report.run.final is not None
    assert chosen.loss == pytest.approx(report.run.final.loss, rel=1e-4)
    page = model_owner.user("GET", f"/rounds/{run}/report.html").text
    assert page.count("data:image/png;base64,") >= 8
    assert "http" not in page.replace("https://", "http").split("</style>")[1]
    first = model_owner.version_weights(report.run.final_version)
    again = model_owner.user("POST", "/rounds", json=report.run.request.model_dump(mode="json"))
    assert again.status_code == 202, again.text
    play(model_owner, sites)
    repeated = model_owner.show(again.json()["id"])
    second = model_owner.version_weights(repeated["final_version"])
    np.testing.assert_array_equal(first, second)


def test_a_site_with_few_images_sends_scores_and_no_counts(owner, sites):
    model_owner, _ = owner
    run = model_owner.start(training={"image_size": 16, "batches": 1, "batch_size": 4})
    play(model_owner, sites)
    report = RunDocument.model_validate(model_owner.user("GET", f"/rounds/{run}/report").json())
    assert report.run.final is not None
    (last,) = report.models
    assert last.overall.validation is None


def test_a_run_that_has_not_begun_has_a_report_too(owner, sites):
    model_owner, _ = owner
    run = model_owner.start()
    report = model_owner.user("GET", f"/rounds/{run}/report").json()
    assert report["models"] == []
    assert "none were evaluated" in model_owner.user("GET", f"/rounds/{run}/report.html").text
