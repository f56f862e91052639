from __future__ import annotations

import itertools

import pytest

from primia.aggregation.errors import InvalidUpdate
from primia.chassis.identity import Identity
from primia.errors import (
    Conflict,
    InvalidInput,
    MalformedMessage,
    PeerRefused,
    PeerUnavailable,
    StorageFull,
    UnexpectedMessage,
)
from primia.learning.config import LocalStopping
from primia.messages.common import ModelCard
from primia.messages.privacy import CentralPrivacy, PrivacySettings
from primia.messages.rounds import (
    NodeCard,
    Proposal,
    SparseGraph,
    Stop,
    Timeouts,
    Train,
    TrainingSettings,
)
from services.data_node.training import domain
from services.data_node.training.domain import PLAIN_STEPS, RUN_TRANSITIONS, SECURE_STEPS

RUN = "ab" * 16
KEYS = {name: Identity.fresh(name).public_key for name in ("node-a", "node-b", "node-c")}


def proposal(keys=None, **changes) -> Proposal:
    cards = tuple(NodeCard(name=name, public_key=key) for name, key in (keys or KEYS).items())
    card = ModelCard(
        name="chest",
        version=1,
        architecture="small_cnn",
        classes=("a", "b"),
        image_size=16,
        digest="0" * 64,
    )
    values = {
        "run": RUN,
        "owner": "model-owner",
        "model": card,
        "nodes": cards,
        "rounds": 2,
        "planned": 2,
        "training": TrainingSettings(),
        "secure": True,
        "threshold": 2,
        "timeouts": Timeouts(),
        **changes,
    }
    return Proposal(**values)


def objections(given: Proposal, enrolled=None, key=None) -> list[str]:
    me = NodeCard(name="node-a", public_key=key or KEYS["node-a"])
    others = {name: KEYS[name] for name in ("node-b", "node-c")}
    return domain.objections(
        given, me=me, owner="model-owner", enrolled=others if enrolled is None else enrolled
    )


def test_a_run_moves_only_as_the_table_says():
    for present, wanted in itertools.product(RUN_TRANSITIONS, repeat=2):
        if wanted in RUN_TRANSITIONS[present]:
            assert domain.move(present, wanted) == wanted
        else:
            with pytest.raises(Conflict):
                domain.move(present, wanted)


@pytest.mark.parametrize(("secure", "steps"), [(True, SECURE_STEPS), (False, PLAIN_STEPS)])
def test_each_step_is_taken_in_its_phase_alone(secure: bool, steps):
    phases = [None, "trained", "shared", "masked", "confirmed", "revealed"]
    kinds = ["train", "share_keys", "upload", "confirm", "unmask", "review", "stop"]
    for kind, phase in itertools.product(kinds, phases):
        if kind in steps and steps[kind][0] == phase:
            assert domain.next_phase(kind, phase, secure=secure) == steps[kind][1]
        else:
            with pytest.raises(UnexpectedMessage, match=kind):
                domain.next_phase(kind, phase, secure=secure)


def test_the_steps_lead_from_one_to_the_next():
    for steps in (SECURE_STEPS, PLAIN_STEPS):
        chain = [step for kind, step in steps.items() if kind not in ("measure", "evaluate")]
        assert all(first[1] == second[0] for first, second in itertools.pairwise(chain))


def test_round_numbers_only_rise():
    domain.check_new_round(3, current=2, rounds=7)
    domain.check_new_round(7, current=2, rounds=7)
    for number in (1, 2):
        with pytest.raises(UnexpectedMessage, match="had begun"):
            domain.check_new_round(number, current=2, rounds=7)


def test_a_site_goes_through_no_more_rounds_than_were_approved():
    """Whatever the owner acknowledged: it may read an answer and refuse it."""
    with pytest.raises(UnexpectedMessage, match="round 8 of a run of at most 7"):
        domain.check_new_round(8, current=2, rounds=7)


def test_a_sound_proposal_meets_no_objection():
    assert objections(proposal()) == []


def test_a_substituted_key_is_named():
    mallory = Identity.fresh("node-b").public_key
    (found,) = objections(proposal({**KEYS, "node-b": mallory}))
    assert "node-b comes with another identity key" in found


def test_this_nodes_own_key_is_checked_even_if_enrolled_otherwise():
    fake = Identity.fresh("node-a").public_key
    given = proposal({**KEYS, "node-a": fake})
    (found,) = objections(given, {**KEYS, "node-a": fake})
    assert "node-a comes with another identity key" in found


def test_a_stranger_among_the_nodes_is_named():
    assert objections(proposal(), {"node-b": KEYS["node-b"]}) == [
        "node-c is not enrolled at this site."
    ]


def test_a_proposal_without_this_node_is_refused():
    others = {name: KEYS[name] for name in ("node-b", "node-c")}
    assert objections(proposal(others)) == ["The proposal does not name this node, node-a."]


def test_a_node_named_twice_is_refused():
    cards = (*proposal().nodes, proposal().nodes[1])
    assert "The proposal names a node twice." in objections(proposal(nodes=cards))


def test_another_owner_is_refused():
    assert "not model-owner" in objections(proposal(owner="model-thief"))[0]


@pytest.mark.parametrize(
    ("nodes", "threshold", "safe"),
    [(3, 2, True), (3, 3, True), (3, 1, False), (3, 4, False), (2, 2, True), (2, 1, False),
     (4, 2, False), (4, 3, True), (1, 1, False)],
)  # fmt: skip
def test_the_threshold_is_a_majority_of_at_least_two(nodes: int, threshold: int, safe: bool):
    keys = {f"node-{'abcd'[n]}": Identity.fresh("x").public_key for n in range(nodes)}
    keys["node-a"] = KEYS["node-a"]
    found = objections(proposal(keys, threshold=threshold), keys)
    assert (found == []) is safe
    assert all("threshold" in each for each in found)


def test_a_sparse_graph_takes_a_threshold_beyond_its_colluding_sites():
    others = {f"site-{number}": Identity.fresh("x").public_key for number in range(17)}
    keys = {**KEYS, **others}
    sparse = SparseGraph(colluding=0.1)
    assert objections(proposal(keys, threshold=11, sparse=sparse), keys) == [
        "The threshold 11 is too small for 20 nodes of which 2 may collude."
    ]
    assert objections(proposal(keys, threshold=12, sparse=sparse), keys) == []


def test_a_site_says_what_share_a_sparse_graph_must_withstand():
    assert domain.unsafe_graph(proposal(), 0.1) == []
    sparse = proposal(sparse=SparseGraph(colluding=0.05))
    assert domain.unsafe_graph(sparse, 0.05) == []
    assert "PRIMIA_COLLUDING_SHARE" in domain.unsafe_graph(sparse, 0.1)[0]


def test_a_plain_run_needs_no_threshold():
    assert objections(proposal(secure=False, threshold=1)) == []


def test_known_zeros_of_stopped_sites_do_not_go_into_a_secure_sum():
    training = TrainingSettings(local_stopping=LocalStopping(when_stopped="contribute"))
    (found,) = objections(proposal(training=training))
    assert "zeros" in found
    assert objections(proposal(training=training, secure=False)) == []
    central = PrivacySettings(central=CentralPrivacy(clip_norm=1, noise_multiplier=1))
    assert objections(proposal(training=training, privacy=central)) == []
    leaving = TrainingSettings(local_stopping=LocalStopping())
    assert objections(proposal(training=leaving)) == []


def test_a_digest_does_not_depend_on_the_order_of_json():
    first = proposal()
    again = Proposal.model_validate_json(first.model_dump_json())
    assert domain.digest(first) == domain.digest(again)
    assert domain.digest(first) != domain.digest(proposal(rounds=3))


def test_items_have_a_round_or_concern_the_run():
    train = Train(run=RUN, round=3, weights_digest="0" * 64, weights_bytes=5)
    assert domain.item_round(train) == 3
    assert domain.item_round(Stop(run=RUN, state="finished")) == 0


@pytest.mark.parametrize("kind", [InvalidInput, InvalidUpdate, Conflict])
def test_details_of_our_own_errors_stay_here(kind):
    told = domain.outward(kind("/srv/images/person7_virus.png: is damaged.", hint="Patient 7"))
    assert "person7" not in told.model_dump_json()
    assert told.code == kind.code
    assert told.detail == f"{kind.title}."


def test_what_the_owner_did_wrong_is_told():
    told = domain.outward(MalformedMessage("The weights are no safetensors file."))
    assert told.detail == "The weights are no safetensors file."
    assert len(domain.outward(MalformedMessage("x" * 5000)).detail) == 2000


@pytest.mark.parametrize(
    ("error", "helps"),
    [
        (PeerUnavailable("away"), True),
        (StorageFull("full"), True),
        (PeerRefused("no", status_of_peer=500), True),
        (PeerRefused("no", status_of_peer=401), True),
        (PeerRefused("no", status_of_peer=429), True),
        (PeerRefused("no", status_of_peer=409), False),
        (PeerRefused("no", status_of_peer=422), False),
        (PeerRefused("no"), False),
        (InvalidInput("x"), False),
    ],
)
def test_only_what_waiting_may_mend_is_tried_again(error, helps: bool):
    assert domain.passes(error) is helps
