"""States, choices and predictions; rows on SQLite and PostgreSQL; what users hand in."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from primia.chassis import migrate
from primia.errors import Conflict, MalformedMessage, NotFound, PeerUnavailable
from primia.messages.common import ModelCard
from primia.messages.inference import ServedModel, ServedPlan
from services.data_node.inference import kept, store, upload
from services.data_node.inference.domain import (
    State,
    choose,
    move,
    predictions,
    retry_seconds,
)
from services.data_node.inference.patience import patiently
from services.data_node.tables import Base

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ALLOWED = {
    "queued": {"running", "cancelled", "failed"},
    "running": {"done", "failed", "cancelled"},
}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)))
def test_every_move(before, after):
    if after.value in ALLOWED.get(before.value, set()):
        assert move(before, after) is after
    else:
        with pytest.raises(Conflict):
            move(before, after)


def served(name="chest", version=1, results=("scores", "label")):
    card = ModelCard(
        name=name, version=version, architecture="small_cnn", classes=("a", "b"), channels=1,
        image_size=16, digest="0" * 64,
    )  # fmt: skip
    plans = tuple(
        ServedPlan(
            plan=f"{version}{len(result)}" * 16, result=result, digest="1" * 64,
            opening_bytes=1, opening_sha256="2" * 64, batch=1,
        )
        for result in results
    )  # fmt: skip
    return ServedModel(card=card, plans=plans)


def test_the_newest_version_with_the_result_is_chosen():
    models = [served(version=1), served(version=3, results=("scores",)), served("other", 9)]
    assert choose(models, "chest", None, "scores")[0].card.version == 3
    assert choose(models, "chest", None, "label")[0].card.version == 1
    assert choose(models, "chest", 1, "label")[1].result == "label"


@pytest.mark.parametrize(
    ("name", "version", "result", "told"),
    [("none", None, "label", "none"), ("chest", 2, "label", "version 1"),
     ("chest", 3, "label", "version 3 (scores, exact)")],
)  # fmt: skip
def test_what_is_not_served_is_named(name, version, result, told):
    models = [served(version=1), served(version=3, results=("scores",))]
    with pytest.raises(NotFound) as caught:
        choose(models, name, version, result)
    assert told in caught.value.detail


def test_predictions_of_scores_and_labels():
    scores = predictions(np.array([[0.5, -1], [0, 2]]), "scores", ["x", "y"], ("a", "b"))
    assert [each.label for each in scores] == ["a", "b"]
    assert scores[0].scores == {"a": 0.5, "b": -1.0}
    labels = predictions(np.array([1, 0]), "label", ["x", "y"], ("a", "b"))
    assert [(each.label, each.scores) for each in labels] == [("b", None), ("a", None)]
    for values, result in ((np.zeros((1, 2)), "scores"), (np.zeros((2, 3)), "scores"),
                           (np.zeros(3, np.int64), "label")):  # fmt: skip
        with pytest.raises(MalformedMessage):
            predictions(values, result, ["x", "y"], ("a", "b"))


def test_pauses_grow_and_stay_bounded():
    assert [retry_seconds(n) for n in (0, 1, 2, 3, 100)] == [1, 1, 3, 9, 27]


@pytest.mark.parametrize(
    ("given", "kept"),
    [("a.png", "a.png"), ("/etc/passwd", "passwd"), ("..\\x\\b.png", "b.png"), (None, "image"),
     ("", "image"), ("a\nb\0.png", "ab.png"), ("x" * 500, "x" * 128), ("dir/", "image")],
)  # fmt: skip
def test_names_of_files_are_plain(given, kept):
    assert upload._plain(given) == kept


def test_a_busy_peer_is_waited_for_and_an_absent_one_is_not(monkeypatch):
    monkeypatch.setattr("services.data_node.inference.patience._PAUSE_SECONDS", 0)
    answers = [PeerUnavailable("busy", status_of_peer=503)] * 2 + ["answer"]

    def call():
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    assert patiently(call, lambda: None) == "answer"
    for error, seconds in (
        (PeerUnavailable("away"), 9),
        (PeerUnavailable("", status_of_peer=503), 0),
    ):
        answers[:] = [error, "answer"]
        with pytest.raises(PeerUnavailable):
            patiently(call, lambda: None, seconds)


def row(number=1, state="queued", created=NOW):
    return store.Inference(
        id=f"{number:032x}", user="alice", model="chest", version=1, result="label",
        images=["x.png"], served={"model": served(results=("label",)).model_dump_json()},
        state=state, cost={}, phase="", step=0, steps=0, tries=0, reason="", pixels=b"sealed",
        created=created,
    )  # fmt: skip


@pytest.fixture
def db(node):
    return node.db


def test_the_migrated_schema_is_the_tables(db):
    own = ("inferences", "inference_events", kept.PrefetchedDeal.__tablename__)
    with db.engine.connect() as connection:
        drifted = migrate.drift(connection, Base.metadata)
    assert [each for each in drifted if any(name in repr(each) for name in own)] == []


def test_ending_forgets_the_images_and_closes_the_events(db):
    with db.session() as session:
        store.add(session, row())
    with db.session() as session:
        found = store.find(session, f"{1:032x}", lock=True)
        found.state, found.deal = "running", "d" * 32
        store.end(session, found, State.DONE, NOW)
    with db.reading() as session:
        found = store.find(session, f"{1:032x}")
        events = store.events_after(session, found.id, 0)
        assert (found.pixels, found.deal, store.is_ended(found)) == (None, None, True)
        assert [event.data["state"] for event in events] == ["queued", "done"]
        assert store.events_after(session, found.id, events[-1].id) == []


def test_cancelling_keeps_the_names_of_what_is_to_be_burned(db):
    with db.session() as session:
        store.add(session, row())
        found = store.find(session, f"{1:032x}")
        found.deal, found.session = "d" * 32, "e" * 32
        store.cancel(session, found, NOW)
        assert (found.state, found.deal, found.session) == ("cancelled", "d" * 32, "e" * 32)
        store.remove(session, found)
    with db.reading() as session, pytest.raises(NotFound):
        store.find(session, f"{1:032x}")


def test_lists(db):
    with db.session() as session:
        for number, state in enumerate(["queued", "running", "done", "failed"]):
            store.add(session, row(number, state, NOW + timedelta(seconds=number)))
        held = store.find(session, f"{1:032x}")
        held.lease_owner, held.lease_until = "x", NOW + timedelta(seconds=60)
    with db.reading() as session:
        assert [each.id for each in store.newest(session, 2)] == [f"{n:032x}" for n in (3, 2)]
        assert store.unfinished(session, NOW) == [f"{0:032x}"]
        later = NOW + timedelta(seconds=61)
        assert store.unfinished(session, later) == [f"{n:032x}" for n in (0, 1)]


def test_securenns_opening_is_taken_to_be_here_after_an_inference_by_it(db):
    """By it, with this plan, to its end: served anew, a version has another opening."""
    model = served(results=("label",))
    again = model.plans[0].model_copy(update={"plan": "f" * 32})
    by = {"served": {"model": model.model_dump_json(), "protocol": "securenn"}}
    with db.session() as session:
        for number, (state, change) in enumerate(
            [("done", {}), ("failed", by), ("done", {"version": 2, **by})]
        ):
            found = row(number, state)
            for name, value in change.items():
                setattr(found, name, value)
            store.add(session, found)
        assert not store.streamed_before(session, model.card, model.plans[0])
        found = row(9, "done")
        found.served = by["served"]
        store.add(session, found)
        assert store.streamed_before(session, model.card, model.plans[0])
        assert not store.streamed_before(session, model.card, again)


def test_a_peer_that_is_away_is_waited_for_where_nothing_is_held(monkeypatch):
    monkeypatch.setattr("services.data_node.inference.patience._PAUSE_SECONDS", 0)
    answers = iter([PeerUnavailable("It is gone."), PeerUnavailable("It is gone."), "answer"])

    def call():
        found = next(answers)
        if isinstance(found, PeerUnavailable):
            raise found
        return found

    with pytest.raises(PeerUnavailable):
        patiently(call, lambda: None)
    assert patiently(call, lambda: None, away=60) == "answer"
