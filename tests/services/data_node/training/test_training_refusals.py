"""What a site must not do, however it is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from primia.aggregation import client
from primia.aggregation.terms import Groups, RoundId
from primia.chassis.identity import Identity, encode_key
from primia.messages import rounds as messages
from primia.prg import Seed
from services.data_node.datasets import store as datasets
from services.data_node.datasets.tasks import validate
from services.data_node.training import intake, store, tasks
from tests.services.data_node.training.conftest import (
    NAMES,
    add_dataset,
    fetch,
    item_row,
    run_row,
    turn,
)
from tests.support.owner_double import RUN
from tests.support.radiographs import draw


def decision(grid, name: str = "node-a") -> messages.Decision:
    return messages.Decision.model_validate_json(grid.owner.answers[name, "decision", 0])


def failure(grid, name: str = "node-a") -> messages.Failure:
    return messages.Failure.model_validate_json(grid.owner.answers[name, "failure", 0])


def disturb(grid, kind: str, change) -> None:
    """Falsify the items of this kind for node-a."""
    grid.owner.disturb = lambda node, item: (
        change(item) if (node, item.kind) == ("node-a", kind) else item
    )


def test_a_substituted_identity_key_is_refused(federation):
    grid = federation(NAMES)
    fake = Identity.fresh("node-b").public_key
    cards = tuple(
        card.model_copy(update={"public_key": fake}) if card.name == "node-b" else card
        for card in grid.owner.proposal.nodes
    )
    grid.owner.proposal = grid.owner.proposal.model_copy(update={"nodes": cards})
    turn(grid.nodes[0])
    found = decision(grid)
    assert not found.accepted
    assert "node-b comes with another identity key" in found.reason
    assert run_row(grid.nodes[0]).state == "refused"


def test_a_run_that_was_reviewed_cannot_change_its_terms(federation):
    grid = federation()
    turn(grid.nodes[0])
    other = grid.owner.proposal.model_copy(update={"rounds": 99})
    item = messages.Review(run=RUN, proposal=other)
    assert intake.take_in(grid.nodes[0], item) is None
    row = run_row(grid.nodes[0])
    assert (row.error_code, row.read_proposal().rounds) == ("unexpected-message", 1)


def test_a_proposal_for_another_run_than_its_item_is_refused(federation):
    grid = federation()
    disturb(grid, "review", lambda item: item.model_copy(update={"run": "cd" * 16}))
    turn(grid.nodes[0])
    assert decision(grid).reason == "The proposal is for another run than the request."


def test_labels_that_differ_are_refused_with_the_difference(federation, images_root: Path):
    grid = federation()
    node = grid.nodes[0]
    with node.db.session() as session:
        datasets.remove(session, datasets.find(session, "chest"))
    root = draw(images_root / "other", 3, seed=9, classes=("normal", "bacterial"))
    add_dataset(node, root, "other")
    turn(node)
    found = decision(grid)
    assert not found.accepted
    assert "it lacks viral and the model does not know bacterial" in found.reason


def test_without_a_data_set_a_run_is_refused(federation):
    grid = federation()
    node = grid.nodes[0]
    with node.db.session() as session:
        datasets.remove(session, datasets.find(session, "chest"))
    turn(node)
    assert decision(grid).reason == "This site has registered no data set."


@pytest.mark.parametrize(
    ("classes", "spoil", "said"),
    [
        (("normal",), False, "it has fewer than two classes with images that can be used"),
        (("normal", "viral"), True, "1 of its files cannot be used"),
        ((), False, "it has fewer than two classes with images that can be used"),
    ],
    ids=["one class", "a corrupt file", "empty"],
)
def test_a_rejected_data_set_is_the_reason_and_its_files_are_not_named(
    federation, images_root: Path, classes, spoil: bool, said: str
):
    grid = federation()
    node = grid.nodes[0]
    root = images_root / "person1"
    root.mkdir()
    draw(root, 3, seed=9, classes=classes)
    if spoil:
        next(root.rglob("*.png")).write_bytes(b"no picture")
    with node.db.session() as session:
        datasets.remove(session, datasets.find(session, "chest"))
        row = datasets.register(
            session, dataset_id="d" * 32, name="bad", kind="folder", place=str(root),
            patient_pattern=None, bad_files="strict", now=node.clock.now(),
        )  # fmt: skip
    assert row.state == "validating"
    validate(node, row.id)
    turn(node)
    found = decision(grid)
    assert not found.accepted
    assert found.reason == (
        f"No data set of this site is ready: one was rejected when it was registered ({said})."
    )
    assert "person" not in found.reason


def test_a_data_set_that_is_still_looked_at_is_the_reason(federation, images_root: Path):
    grid = federation()
    node = grid.nodes[0]
    with node.db.session() as session:
        datasets.remove(session, datasets.find(session, "chest"))
        datasets.register(
            session, dataset_id="d" * 32, name="new", kind="folder", place=str(images_root),
            patient_pattern=None, bad_files="strict", now=node.clock.now(),
        )  # fmt: skip
    turn(node)
    assert decision(grid).reason == "No data set of this site is ready: one is still looked at."


def test_of_two_that_fit_nobody_is_guessed(federation, images_root: Path):
    grid = federation()
    node = grid.nodes[0]
    add_dataset(node, draw(images_root / "more", 3, seed=9), "more")
    turn(node)
    assert "2 data sets of this site fit" in decision(grid).reason


def test_tampered_weights_are_not_trained_on(federation):
    grid = federation()
    grid.until("decision")
    disturb(grid, "train", lambda item: item.model_copy(update={"weights_digest": "f" * 64}))
    node = grid.nodes[0]
    turn(node)
    found = failure(grid)
    assert found.code == "malformed-message"
    assert "digest differs" in found.detail
    with node.db.reading() as session:
        assert store.rounds(session, RUN) == []
    assert not (node.files.root / "rounds" / RUN / "1" / "weights.safetensors").exists()
    assert run_row(node).error_code == "malformed-message"


@pytest.mark.parametrize(
    ("difference", "code", "state"),
    [(-1, "malformed-message", "sent"), (1, "peer-unavailable", "open")],
)
def test_weights_of_another_size_than_announced_are_not_trained_on(
    federation, difference: int, code: str, state: str
):
    """Too many bytes are a fault; too few may be a connection that broke off."""
    grid = federation()
    grid.until("decision")
    disturb(
        grid,
        "train",
        lambda item: item.model_copy(update={"weights_bytes": item.weights_bytes + difference}),
    )
    row = turn(grid.nodes[0])
    assert item_row(grid.nodes[0], row).state == state
    assert run_row(grid.nodes[0]).error_code == code
    with grid.nodes[0].db.reading() as session:
        assert store.rounds(session, RUN) == []


def test_weights_that_do_not_fit_the_model_are_refused(federation):
    grid = federation()
    grid.until("decision")
    grid.owner.file = lambda _number: b"\x08\0\0\0\0\0\0\0{}      " * 3
    turn(grid.nodes[0])
    assert failure(grid).code == "malformed-message"


def test_weights_with_nan_are_refused(federation):
    grid = federation()
    grid.until("decision")
    file, vector = grid.owner.file(1), grid.owner.weights[1]
    at = file.rfind(np.float32(vector[-1]).tobytes())
    broken = file[:at] + np.float32(np.nan).tobytes() + file[at + 4 :]
    grid.owner.file = lambda _number: broken
    turn(grid.nodes[0])
    assert "not finite" in failure(grid).detail


def test_a_model_that_cannot_be_built_is_explained(federation):
    grid = federation()
    card = grid.owner.proposal.model.model_copy(update={"architecture": "resnet999"})
    grid.owner.proposal = grid.owner.proposal.model_copy(update={"model": card})
    row = item_row(grid.nodes[0], turn(grid.nodes[0]))
    decision = messages.Decision.model_validate_json(row.answer)
    assert not decision.accepted
    assert "cannot be built" in decision.reason


def test_a_model_for_masks_is_refused_where_images_have_classes(federation):
    grid = federation()
    card = grid.owner.proposal.model.model_copy(update={"architecture": "unet", "image_size": 32})
    training = grid.owner.proposal.training.model_copy(update={"image_size": 32})
    update = {"model": card, "training": training}
    grid.owner.proposal = grid.owner.proposal.model_copy(update=update)
    row = item_row(grid.nodes[0], turn(grid.nodes[0]))
    decision = messages.Decision.model_validate_json(row.answer)
    assert not decision.accepted
    assert "segmentation" in decision.reason


def test_training_that_diverges_uploads_nothing(federation):
    grid = federation()
    grid.until("decision")
    grid.owner.weights[1] = grid.owner.weights[1] * np.float32(1e30)
    turn(grid.nodes[0])
    told = messages.Failure(code="invalid-update", detail="Update refused.", round=1)
    assert failure(grid) == told
    assert ("node-a", "report", 1) not in grid.owner.answers


def test_a_changed_file_stops_training_and_its_name_stays_here(federation, images_root: Path):
    grid = federation()
    grid.until("decision")
    victim = next((images_root / "node-a" / "viral").glob("*.png"))
    victim.write_bytes(b"something else")
    turn(grid.nodes[0])
    told = failure(grid)
    assert told.code == "data-set-changed"
    assert "person" not in told.model_dump_json()
    assert victim.name in run_row(grid.nodes[0]).error_detail


def test_nothing_that_leaves_names_a_file_or_patient(federation, images_root: Path):
    grid = federation()
    grid.finish()
    sent = b"".join(grid.owner.answers.values())
    assert b"person" not in sent
    assert str(images_root).encode() not in sent
    assert b".png" not in sent


def test_a_step_out_of_order_is_answered_with_a_failure(federation):
    grid = federation()
    grid.until("report", 1)
    item = messages.Confirm(run=RUN, round=1, survivors=("node-a", "node-b"))
    row = intake.take_in(grid.nodes[0], item)
    tasks.work(grid.nodes[0], row)
    assert failure(grid).code == "unexpected-message"
    assert "'confirm'" in failure(grid).detail


def test_an_earlier_round_is_not_taken_up_again(federation):
    grid = federation(secure=False, rounds=2)
    grid.until("report", 2)
    node = grid.nodes[0]
    with node.db.session() as session:
        old = store.find_item(session, messages.Upload(run=RUN, round=1, samples={}))
        item = old.read_item()
        session.delete(old)
    tasks.work(node, intake.take_in(node, item))
    assert "upload" in failure(grid).detail


def test_a_round_begins_once(federation):
    grid = federation(rounds=2)
    grid.until("report", 2)
    node = grid.nodes[0]
    with node.db.session() as session:
        train = messages.Train(run=RUN, round=1, weights_digest="0" * 64, weights_bytes=9)
        session.delete(store.find_item(session, train))
    tasks.work(node, intake.take_in(node, train))
    assert "asked for round 1 after round 2 had begun" in failure(grid).detail


def test_an_item_with_other_contents_is_not_answered(federation):
    grid = federation()
    grid.until("report", 1)
    train = messages.Train(run=RUN, round=1, weights_digest="0" * 64, weights_bytes=9)
    assert intake.take_in(grid.nodes[0], train) is None
    assert run_row(grid.nodes[0]).error_code == "unexpected-message"


def test_work_for_a_run_nobody_approved_is_refused(federation):
    grid = federation()
    item = messages.Train(run=RUN, round=1, weights_digest="0" * 64, weights_bytes=9)
    tasks.work(grid.nodes[0], intake.take_in(grid.nodes[0], item))
    assert "not known here" in failure(grid).detail


def test_a_roster_with_a_stranger_is_refused(federation):
    grid = federation()
    grid.until("report", 1)
    mallory = Identity.fresh("node-z")
    _, forged = client.advertise(
        Seed.fresh(),
        round_id=RoundId(bytes.fromhex(RUN), 1),
        node="node-z",
        threshold=2,
        samples=5,
        groups=Groups(
            grid.owner.layout.group_size("parameters"), grid.owner.layout.group_size("buffers")
        ),
        exponents=(0, 0),
        sign=mallory.sign,
    )
    disturb(
        grid,
        "share_keys",
        lambda item: item.model_copy(
            update={"roster": {**item.roster, "node-z": encode_key(forged)}}
        ),
    )
    turn(grid.nodes[0])
    assert failure(grid).code == "invalid-signature"
    assert ("node-a", "envelopes", 1) not in grid.owner.answers


def test_a_second_survivor_set_is_never_revealed_for(federation):
    grid = federation(NAMES)
    grid.until("confirmation", 1)
    signatures = grid.owner._parsed("confirmation", messages.Confirmation, 1)
    item = messages.Unmask(
        run=RUN,
        round=1,
        survivors=("node-a", "node-b"),
        confirmations={name: each.signature for name, each in signatures.items()},
    )
    tasks.work(grid.nodes[0], intake.take_in(grid.nodes[0], item))
    assert failure(grid).code == "unexpected-message"
    assert ("node-a", "shares", 1) not in grid.owner.answers


def test_an_answer_that_the_owner_refuses_is_kept_as_the_error(federation):
    grid = federation()
    grid.until("decision")
    grid.owner.refuse = lambda node, kind: (node, kind) == ("node-a", "report")
    row = turn(grid.nodes[0])
    assert item_row(grid.nodes[0], row).state == "dropped"
    found = run_row(grid.nodes[0])
    assert (found.state, found.error_code) == ("active", "peer-refused")


def test_a_refused_decision_frees_the_site(federation):
    grid = federation()
    grid.owner.refuse = lambda _node, kind: kind == "decision"
    turn(grid.nodes[0])
    found = run_row(grid.nodes[0])
    assert (found.state, found.slot) == ("failed", None)
    with grid.nodes[0].db.session() as session:
        datasets.remove(session, datasets.find(session, "chest"))


def test_a_cancelled_run_stops_training_at_the_next_batch(federation, monkeypatch):
    from services.data_node.training import local, stopping

    grid = federation(training={"batches": 100_000, "learning_rate": 1e-5})
    grid.until("decision")
    node = grid.nodes[0]
    monkeypatch.setattr(stopping, "_SECONDS_BETWEEN_LOOKS", 0)
    batches = 0
    real = local.train_locally

    def counted(*args, should_stop, **options):
        def asked() -> bool:
            nonlocal batches
            batches += 1
            if batches == 3:
                grid.owner.stop("cancelled", "enough")
                intake.take_in(node, fetch(node))
            return should_stop()

        return real(*args, should_stop=asked, **options)

    monkeypatch.setattr(local, "train_locally", counted)
    row = turn(node)
    assert batches == 3
    assert item_row(node, row).state == "dropped"
    turn(node)
    found = run_row(node)
    assert (found.state, found.reason) == ("cancelled", "enough")
    assert ("node-a", "acknowledgement", 0) in grid.owner.answers
    assert not (node.files.root / "rounds" / RUN).exists()


def test_a_site_that_was_left_behind_stops_training_the_old_round(federation, monkeypatch):
    from services.data_node.training import local, stopping

    grid = federation(training={"batches": 100_000, "learning_rate": 1e-5})
    grid.until("decision")
    node = grid.nodes[0]
    monkeypatch.setattr(stopping, "_SECONDS_BETWEEN_LOOKS", 0)
    real = local.train_locally

    def left_behind(*args, **options):
        with node.db.session() as session:
            store.drop_items(session, RUN, before_round=2)
        return real(*args, **options)

    monkeypatch.setattr(local, "train_locally", left_behind)
    row = turn(node)
    assert item_row(node, row).state == "dropped"
    assert run_row(node).state == "active"
    assert ("node-a", "report", 1) not in grid.owner.answers


def test_a_run_that_is_cancelled_in_review_is_over(federation):
    grid = federation(approval="manual")
    turn(grid.nodes[0])
    grid.owner.stop("cancelled")
    turn(grid.nodes[0])
    assert run_row(grid.nodes[0]).state == "cancelled"
    assert grid.owner.kinds("node-a") == [("acknowledgement", 0)]


def test_a_stop_for_an_unknown_run_is_acknowledged(federation):
    grid = federation()
    grid.owner.stop("failed", "lost")
    turn(grid.nodes[0])
    assert grid.owner.kinds("node-a") == [("acknowledgement", 0)]


def test_what_breaks_unexpectedly_is_told_without_details(federation, monkeypatch):
    from services.data_node.training import local

    grid = federation()
    grid.until("decision")

    def broken(*_args):
        raise RuntimeError("/srv/images/person7.png")

    monkeypatch.setattr(local, "train", broken)
    turn(grid.nodes[0])
    assert failure(grid) == messages.Failure(
        code="internal", detail="This site failed unexpectedly.", round=1
    )


def test_a_site_that_got_another_model_than_the_others_is_not_aggregated_with(federation):
    """Model inconsistency: the others' updates could be made to vanish from the sum."""
    grid = federation()
    grid.until("report", 1)
    with grid.nodes[0].db.session() as session:
        train = messages.Train(run=RUN, round=1, weights_digest="0" * 64, weights_bytes=9)
        row = store.find_item(session, train)
        row.body = train.model_dump_json()
    turn(grid.nodes[0])
    assert failure(grid).code == "invalid-signature"
    assert ("node-a", "envelopes", 1) not in grid.owner.answers


def test_a_site_that_has_stopped_gives_nothing_to_a_secure_sum(federation):
    """An owner that asks it anyway would know its part of the sum: zero."""
    stopping = {"patience": 1, "measure": "accuracy", "min_change": 1}
    grid = federation(rounds=3, training={"local_stopping": stopping, "batches": 24})
    grid.until("report", 1)
    found = grid.owner._parsed("report", messages.TrainReport, 1)
    assert [report.stopped for report in found.values()] == [True, True]
    grid.until("shares", 1)
    turn(grid.nodes[0])
    assert "Early stopping has ended training" in failure(grid).detail
    assert ("node-a", "report", 2) not in grid.owner.answers


def test_one_model_is_evaluated_in_a_run(federation):
    grid = federation()
    grid.until("evaluation")
    again = messages.Evaluate(run=RUN, round=3, weights_digest="0" * 64, weights_bytes=9)
    tasks.work(grid.nodes[0], intake.take_in(grid.nodes[0], again))
    assert "evaluated the run's final model already" in failure(grid).detail


def test_an_owner_cannot_leave_rows_without_end(federation, monkeypatch):
    monkeypatch.setattr(intake, "_MAX_PENDING", 2)
    (node,) = federation(NAMES[:1]).nodes
    taken = [
        intake.take_in(node, messages.Stop(run=f"{number:032x}", state="cancelled"))
        for number in range(4)
    ]
    assert [row is not None for row in taken] == [True, True, False, False]


def test_a_data_set_in_colour_is_refused_for_a_grey_model_with_the_reason(federation):
    grid = federation(NAMES[:1], secure=False, rounds=1)
    with grid.nodes[0].db.session() as session:
        datasets.find(session, "chest").look = {"colour": 9, "smallest": [1, 1], "largest": [1, 1]}
    turn(grid.nodes[0])
    found = decision(grid)
    assert not found.accepted
    assert "9 of its 16 images are in colour" in found.reason


def test_local_stopping_without_validation_images_is_refused_with_the_reason(federation):
    """One patient a class leaves none to validate on: the site would never stop."""
    training = {"batch_size": 2, "local_stopping": {"patience": 1}}
    grid = federation(NAMES[:1], secure=False, per_class=1, training=training)
    turn(grid.nodes[0])
    found = decision(grid)
    assert not found.accepted
    assert "no validation images for early stopping" in found.reason


def test_a_training_that_does_not_fit_the_memory_is_refused_in_review(federation, monkeypatch):
    from services.data_node.training import fitting

    monkeypatch.setattr(fitting, "_memory", lambda: 100 << 20)
    grid = federation(NAMES[:1], secure=False, rounds=1)
    row = item_row(grid.nodes[0], turn(grid.nodes[0]))
    decision = messages.Decision.model_validate_json(row.answer)
    assert not decision.accepted
    assert "does not fit this site's memory" in decision.reason
