"""The commands against a model owner and a data node, served once for all of these tests."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import structlog
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from primia.chassis import migrate
from primia.chassis.app import create_app as create_service_app
from primia.chassis.context import Context
from primia.cli import profile
from primia.cli.main import create_app
from primia.errors import PeerRefused
from services.data_node.main import create_service as create_node
from services.data_node.privacy.store import Charge
from services.data_node.settings import DataNodeSettings
from services.model_owner.main import create_service as create_owner
from services.model_owner.settings import ModelOwnerSettings
from services.model_owner.studies import tasks as studies
from tests.services.data_node.training.conftest import add_dataset, turn
from tests.services.model_owner.federation import Federation
from tests.support.contexts import Cast
from tests.support.owner_double import serving
from tests.support.radiographs import draw

NODE, CLASSES = "node-a", ("normal", "pneumonia")


@dataclass
class World:
    owner: Federation
    node: Context
    environment: dict[str, str]

    def primia(self, *words: str, fails: int = 0) -> str:
        done = CliRunner().invoke(create_app(), list(words), env=self.environment)
        assert done.exit_code == fails, f"{words}: {done.output} {done.exception}"
        return done.output

    def json(self, *words: str):
        return json.loads(self.primia(*words, "--format", "json"))

    def asked(self, *words: str) -> str:
        """A run that the node has to decide on."""
        options = ["--set", "aggregation.secure=false", "--set", "training.image_size=16"]
        options += ["--batch-size", "4"]
        run = self.json("rounds", "start", "chest", "--nodes", NODE, *options, *words)["id"]
        assert turn(self.node) is not None
        return run


@pytest.fixture(scope="module")
def logs_apart() -> Iterator[None]:
    """The services log in this process: not to where the commands print."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, broker_url: str, logs_apart: None
) -> Iterator[World]:
    root = tmp_path_factory.mktemp("commands")
    cast = Cast(root / "cast")
    owner = cast.context("model_owner", "model-owner", ModelOwnerSettings, broker_url)
    app = create_service_app(create_owner(), owner)
    migrate.upgrade(owner.db, create_owner().migrations)
    with serving(app) as owner_url:
        settings = {"owner_url": owner_url, "data_roots": (root,), "accept_plain_updates": True}
        node = cast.context("data_node", NODE, DataNodeSettings, broker_url, **settings)
        service = replace(create_node(), background=())  # the tests fetch its work
        migrate.upgrade(node.db, service.migrations)
        add_dataset(node, draw(root / "images", 6, seed=1, classes=CLASSES))
        with serving(create_service_app(service, node)) as node_url:
            cast.identities["alice"].save(root / "alice.pem")
            (root / "profile.toml").write_text(
                'user = "alice"\nkey = "alice.pem"\n'
                f'[owner]\nname = "model-owner"\nurl = "{owner_url}"\n'
                f'[nodes]\n{NODE} = "{node_url}"\n'
            )
            places = {"PRIMIA_PROFILE": str(root / "profile.toml"), "COLUMNS": "240"}
            federation = Federation(owner, cast, TestClient(app))
            with working(federation.with_model()):
                yield World(federation, node, places)
        node.close()
    owner.close()


@contextmanager
def working(owner: Federation) -> Iterator[None]:
    """The owner's worker, in a thread."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.1):
            owner.work()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_model_is_created_with_its_norm_and_normalisation(world: World):
    options = ["--architecture", "small_cnn", "--image-size", "16", "--channels", "3"]
    said = world.primia(
        "models", "create", "private", "--classes", "normal, pneumonia", *options,
        "--norm", "group", "--mean", "0.48,0.45,0.4", "--std", "0.25", "--description", "Noisy.",
    )  # fmt: skip
    assert "private version 1 is ready" in said
    models = {each["name"]: each for each in world.json("models", "list")["models"]}
    made = models["private"]
    assert made["description"] == "Noisy."
    spec = {name: made["spec"][name] for name in ("norm", "mean", "std", "classes")}
    assert spec == {
        "norm": "group",
        "mean": [0.48, 0.45, 0.4],
        "std": 0.25,
        "classes": ["normal", "pneumonia"],
    }
    for wrong, said in ((("--mean", "grey"), "'grey'"), (("--norm", "layer"), "norm")):
        answer = world.primia(
            "models", "create", "x", "--classes", "a,b", *wrong, fails=1 + (said == "norm")
        )
        assert said in answer


def test_nodes_are_enrolled_by_what_their_operator_printed(world: World, tmp_path: Path):
    enrolment = tmp_path / "node-z.json"
    made = ("identity", "create", "node-z", "data_node", "--key", str(tmp_path / "z.pem"))
    enrolment.write_text(world.primia(*made))
    assert "node-z is enrolled." in world.primia("nodes", "enrol", str(enrolment))
    assert {each["name"] for each in world.json("nodes", "list")["nodes"]} >= {NODE, "node-z"}
    assert "never" in world.primia("nodes", "list")
    world.primia("nodes", "remove", "node-z")
    assert "node-z" not in world.primia("nodes", "list")
    assert "no data node node-z" in world.primia("nodes", "remove", "node-z", fails=1)
    user = ("identity", "create", "bob", "user", "--key", str(tmp_path / "bob.pem"))
    enrolment.write_text(world.primia(*user))
    assert "bob is a user" in world.primia("nodes", "enrol", str(enrolment), fails=1)
    enrolment.write_text("{}")
    assert "name" in world.primia("nodes", "enrol", str(enrolment), fails=2)


def test_a_run_is_decided_on_left_cancelled_and_repeated(world: World, tmp_path: Path):
    run = world.asked("--rounds", "2")
    pending = world.json("rounds", "list", "--node", NODE, "--state", "pending")
    assert [each["id"] for each in pending["runs"]] == [run]
    assert run in world.primia("rounds", "list", "--state", "pending")
    assert "pending at this site" in world.primia("rounds", "show", run, "--node", NODE)
    world.primia("rounds", "approve", run, "chest", "--node", NODE)
    assert "active" in world.primia("rounds", "list", "--node", NODE)
    world.primia("rounds", "withdraw", run, "Consent revoked.", "--node", NODE)
    assert world.json("rounds", "show", run, "--node", NODE)["state"] == "withdrawn"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRIMIA_PROFILE", world.environment["PRIMIA_PROFILE"])
        events = list(profile.load().data_node(NODE).run_events(run))
    assert [data["state"] for kind, data in events if kind == "state"][-1] == "withdrawn"
    world.primia("rounds", "cancel", run)
    assert world.json("rounds", "show", run)["state"] == "cancelled"
    assert run in world.primia("rounds", "list")
    turn(world.node)  # it takes note
    report = tmp_path / "run.json"
    world.primia("rounds", "report", run, "--json", str(report))
    again = world.json("rounds", "repeat", str(report), "--set", "rounds=1")
    assert (again["rounds"], again["model"]) == (1, "chest")
    assert turn(world.node) is not None
    world.primia("rounds", "refuse", again["id"], "No consent yet.", "--node", NODE)
    turn(world.node)
    shown = world.primia("rounds", "show", again["id"])
    assert "failed" in shown
    assert "No consent yet." in shown
    report.write_text("{}")
    assert "no report of a run" in world.primia("rounds", "repeat", str(report), fails=2)


def test_a_run_that_only_evaluates_is_watched_to_its_end(world: World):
    run = world.asked("--rounds", "0")
    world.primia("rounds", "approve", run, "chest", "--node", NODE)
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.1):
            turn(world.node)

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        try:
            shown = world.primia("rounds", "watch", run)
        finally:
            over.set()
        working.result()
    assert "Final model on the sites' validation images" in shown
    assert "registered" not in shown


def test_a_search_is_followed_extended_plotted_and_cancelled(world: World, tmp_path: Path):
    config, plot = tmp_path / "search.json", tmp_path / "plot.png"
    rates = {"kind": "float", "low": 1e-4, "high": 1e-2, "log": True}
    run = {"model": "chest", "nodes": [NODE], "rounds": 1, "aggregation": {"secure": False}}
    run["training"] = {"image_size": 16}
    config.write_text(json.dumps({"run": run, "parameters": {"training.learning_rate": rates}}))
    started = ("search", "start", "--config", str(config), "--set")
    assert "trials" in world.primia(*started, "trials=0", fails=1)
    study = world.json(*started, "trials=2")["id"]
    studies.advance(world.owner.ctx, study)
    assert study in world.primia("search", "list")
    shown = world.primia("search", "show", study)
    assert "running" in shown
    assert "training.learning_rate" in shown
    world.primia("search", "extend", study, "3")
    assert world.json("search", "show", study)["trials"] == 5
    for kind in ("history", "importance"):
        world.primia("search", "plot", study, str(plot), "--kind", kind)
        assert plot.read_bytes().startswith(b"\x89PNG")
    world.primia("search", "cancel", study)
    found = world.json("search", "show", study)
    assert (found["state"], [each["state"] for each in found["reports"]]) == (
        "cancelled",
        ["failed"],
    )


def test_what_training_has_cost_is_shown(world: World):
    row = {"run": "ab" * 16, "owner": "model-owner", "dataset": "7" * 32, "dataset_name": "chest"}
    with world.node.db.session() as session:
        session.add_all(
            Charge(
                **row, round=number, created=world.node.clock.now(),
                noise_multiplier=2.0, sample_rate=0.5, steps=3,
            )
            for number in (1, 2)
        )  # fmt: skip
    (account,) = world.json("privacy", "show")["accounts"]
    shown = world.primia("privacy", "show", "--node", NODE)
    assert account["runs"][0]["rounds"] == 2
    assert f"{account['epsilon']:.3f}" in shown
    assert row["run"] in shown


def test_a_node_that_is_not_known_is_named(world: World):
    assert "There is no data node node-q" in world.primia(
        "privacy", "show", "--node", "node-q", fails=1
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRIMIA_PROFILE", world.environment["PRIMIA_PROFILE"])
        with pytest.raises(PeerRefused, match="no run"):
            profile.load().data_node(NODE).withdraw("0" * 32, "It never was.")
