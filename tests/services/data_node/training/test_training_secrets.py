"""What is kept of a round's keys, and what the web process loads."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from primia.aggregation.terms import Groups
from primia.chassis.at_rest import AtRest
from primia.chassis.identity import Identity
from primia.errors import LocalError, UnexpectedMessage
from services.data_node.training import secure, store
from services.data_node.training.tables import RoundSecret
from tests.services.data_node.training.test_training_domain import RUN, proposal

CHANGE = np.linspace(-1, 1, 8, dtype=np.float32)
GROUPS = Groups(6, 2)
TERMS = bytes(32)


def begin(identity: Identity):
    return secure.begin(proposal(), identity, 1, CHANGE, GROUPS, samples=5, terms=TERMS)


def test_keys_are_fresh_for_every_round():
    identity = Identity.fresh("node-a")
    (_, first, exponents), (_, second, _) = begin(identity), begin(identity)
    assert first != second
    assert exponents == {"parameters": 1, "buffers": 1}


def test_what_is_stored_is_sealed_and_bound_to_its_place():
    identity = Identity.fresh("node-a")
    state, _, _ = begin(identity)
    at_rest = AtRest(identity.storage_key())
    sealed = secure.seal(state, at_rest, RUN, 1)
    assert state.secrets.seed.reveal() not in sealed
    assert secure.unseal(sealed, at_rest, RUN, 1).to_bytes() == state.to_bytes()
    for run, number in (("cd" * 16, 1), (RUN, 2)):
        with pytest.raises(LocalError, match="cannot be opened"):
            secure.unseal(sealed, at_rest, run, number)
    with pytest.raises(LocalError):
        secure.unseal(sealed, AtRest(Identity.fresh("x").storage_key()), RUN, 1)


def test_without_keys_the_round_is_over():
    with pytest.raises(UnexpectedMessage, match="its keys are gone"):
        secure.unseal(None, AtRest(bytes(32)), RUN, 1)


def test_signatures_are_checked_against_the_approved_keys_alone():
    identities = {name: Identity.fresh(name) for name in ("node-a", "node-b")}
    approved = proposal({name: each.public_key for name, each in identities.items()})
    verify = secure.verifier(approved, TERMS)
    signature = secure.signer(identities["node-b"], TERMS)(b"message")
    assert verify("node-b", b"message", signature)
    assert not verify("node-a", b"message", signature)
    assert not verify("node-b", b"another", signature)
    assert not verify("node-z", b"message", signature)
    assert not secure.verifier(approved, bytes(31) + b"1")("node-b", b"message", signature)


def test_the_database_holds_no_seed_and_wiping_removes_the_row(node):
    identity = node.identity
    state, _, _ = begin(identity)
    with node.db.session() as session:
        store.propose(session, proposal(), node.clock.now())
        for number in (1, 2, 3):
            sealed = secure.seal(state, node.secrets, RUN, number)
            store.put_secret(session, RUN, number, sealed)
    with node.db.session() as session:
        assert state.secrets.seed.reveal() not in store.secret(session, RUN, 2)
        store.wipe_secrets(session, RUN, below=3)
        assert [row.number for row in session.query(RoundSecret)] == [3]
        store.wipe_secrets(session, RUN)
        assert session.query(RoundSecret).count() == 0


def test_the_web_process_never_loads_torch():
    code = (
        "import sys; from services.data_node.main import create_service; create_service(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
