"""What the sites of a round must agree on."""

from __future__ import annotations

from primia.messages.common import ModelCard
from primia.messages.rounds import (
    NodeCard,
    Proposal,
    Timeouts,
    TrainingSettings,
    round_terms,
)

CARD = ModelCard(
    name="chest",
    version=1,
    architecture="small_cnn",
    classes=("a", "b"),
    image_size=16,
    digest="0" * 64,
)


def proposal(**training) -> Proposal:
    return Proposal(
        run="ab" * 16,
        owner="model-owner",
        model=CARD,
        nodes=(NodeCard(name="node-a", public_key="x"), NodeCard(name="node-b", public_key="y")),
        rounds=2,
        planned=2,
        training=TrainingSettings(**training),
        secure=True,
        threshold=2,
        timeouts=Timeouts(),
    )


def test_the_same_terms_survive_the_wire():
    given = proposal(learning_rate=1e-5)
    terms = round_terms(given, "1" * 64)
    assert len(terms) == 32
    assert round_terms(Proposal.model_validate_json(given.model_dump_json()), "1" * 64) == terms


def test_other_settings_or_weights_are_other_terms():
    found = {
        round_terms(proposal(), "1" * 64),
        round_terms(proposal(learning_rate=1e-30), "1" * 64),
        round_terms(proposal(), "2" * 64),
    }
    assert len(found) == 3
