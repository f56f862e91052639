from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import cache
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primia.aggregation.envelopes import (
    ENVELOPE_BYTES,
    SECRET_SIZES,
    Envelope,
    Holding,
    Kind,
    commit_share,
    deal,
    unseal,
)
from primia.aggregation.errors import InconsistentRound
from primia.aggregation.keys import RoundSecrets
from primia.aggregation.roster import Roster
from primia.aggregation.terms import RoundId
from primia.errors import MalformedMessage
from primia.prg import Seed
from primia.sharing import Share, combine
from tests.primia.aggregation.federation import RUN, Federation, frozen_federation, names

ALICE, BOB, CAROL = names(3)


def secrets_of(node: str) -> RoundSecrets:
    return RoundSecrets(Federation.of(3).seeds[node])


@cache
def roster() -> Roster:
    return Federation.of(3).advertise().roster


def test_envelopes_carry_shares_of_both_secrets() -> None:
    secrets, dealt = secrets_of(ALICE), deal(secrets_of(ALICE), roster(), ALICE)
    assert list(dealt) == [ALICE, BOB, CAROL]
    holdings = [unseal(secrets_of(n), roster(), ALICE, n, data) for n, data in dealt.items()]
    for kind, secret in (
        (Kind.MASKING_KEY, secrets.masking().reveal()),
        (Kind.SELF_MASK, secrets.self_mask().reveal()),
    ):
        shares = [holding.share(kind) for holding in holdings]
        assert [share.point for share in shares] == [1, 2, 3]
        assert combine(shares[1:], 2, SECRET_SIZES[kind]) == secret


def test_dealing_twice_gives_the_same_envelopes() -> None:
    assert deal(secrets_of(ALICE), roster(), ALICE) == deal(secrets_of(ALICE), roster(), ALICE)


def test_another_roster_gives_other_keys_and_other_shares() -> None:
    """No key and nonce ever encrypt two messages, and no polynomial is used twice."""
    smaller = Federation.of(3).advertise([ALICE, BOB]).roster
    one, other = (deal(secrets_of(ALICE), each, ALICE)[BOB] for each in (roster(), smaller))
    first = unseal(secrets_of(BOB), roster(), ALICE, BOB, one)
    second = unseal(secrets_of(BOB), smaller, ALICE, BOB, other)
    assert first.masking_key != second.masking_key
    assert Envelope.parse(one).sealed != Envelope.parse(other).sealed


def test_frozen_envelope() -> None:
    fixed = frozen_federation().advertise().roster
    data = deal(secrets_of(ALICE), fixed, ALICE)[BOB]
    assert len(data) == ENVELOPE_BYTES == 152
    assert fixed.context.hex() == "ba7520e2e0a106073c86da217f93f61f0c93841bdd8d1303ea681ed94a639995"
    assert (
        sha256(data).hexdigest()
        == "74a7b9b939102fda99be0970ed3cc1246d6e1d39d0a63af9701048ad655eb2d4"
    )
    assert data[:20].hex() == "5047453105a5eecad9ca253c7d8aff0576b8feff"


def test_only_the_named_holder_opens_an_envelope() -> None:
    data = deal(secrets_of(ALICE), roster(), ALICE)[BOB]
    with pytest.raises(MalformedMessage, match=f"from {ALICE} is not authentic for {CAROL}"):
        unseal(secrets_of(CAROL), roster(), ALICE, CAROL, data)
    with pytest.raises(MalformedMessage, match="not authentic"):
        unseal(secrets_of(BOB), roster(), CAROL, BOB, data)


def test_an_envelope_of_another_round_is_refused() -> None:
    """Same nodes, same keys, another round number."""
    other = Federation.of(3, round_id=RoundId(RUN, 2)).advertise().roster
    data = deal(secrets_of(ALICE), other, ALICE)[BOB]
    with pytest.raises(MalformedMessage, match="not authentic"):
        unseal(secrets_of(BOB), roster(), ALICE, BOB, data)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, ENVELOPE_BYTES - 1), st.integers(1, 255))
def test_any_altered_byte_is_refused(at: int, change: int) -> None:
    data = bytearray(deal(secrets_of(ALICE), roster(), ALICE)[BOB])
    data[at] ^= change
    with pytest.raises(MalformedMessage):
        unseal(secrets_of(BOB), roster(), ALICE, BOB, bytes(data))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_envelope(data: bytes) -> None:
    for candidate in (data, b"PGE1" + data):
        with contextlib.suppress(MalformedMessage):
            assert Envelope.parse(candidate).to_bytes() == candidate


def test_a_dealer_that_commits_to_other_shares_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def false_commitment(*_: object) -> bytes:
        return bytes(32)

    with monkeypatch.context() as patch:
        patch.setattr("primia.aggregation.envelopes.commit_share", false_commitment)
        data = deal(secrets_of(ALICE), roster(), ALICE)[BOB]
    with pytest.raises(InconsistentRound, match=f"{ALICE} sealed another share"):
        unseal(secrets_of(BOB), roster(), ALICE, BOB, data)


def test_a_dealer_that_deals_another_nodes_point_is_named() -> None:
    """The dealer believes in an order of its own: Bob gets the share at Carol's point."""
    seen = roster()
    shuffled = Roster((seen.entry(ALICE), seen.entry(CAROL), seen.entry(BOB)))
    shuffled.__dict__["context"] = seen.context
    data = deal(secrets_of(ALICE), shuffled, ALICE)[BOB]
    with pytest.raises(InconsistentRound, match=f"{ALICE} sealed another share"):
        unseal(secrets_of(BOB), seen, ALICE, BOB, data)


def test_a_dealers_key_of_low_order_is_refused() -> None:
    seen = roster()
    weak = replace(seen.entry(CAROL), encryption_key=bytes(32))
    altered = Roster((seen.entry(ALICE), seen.entry(BOB), weak))
    with pytest.raises(MalformedMessage, match="low order"):
        deal(secrets_of(ALICE), altered, ALICE)


def test_share_commitments_bind_everything() -> None:
    share, context = Share(1, 7), bytes(32)
    found = {
        commit_share(share, Kind.SELF_MASK, context, "a"),
        commit_share(share, Kind.MASKING_KEY, context, "a"),
        commit_share(share, Kind.SELF_MASK, context, "b"),
        commit_share(share, Kind.SELF_MASK, bytes([1]) * 32, "a"),
        commit_share(Share(2, 7), Kind.SELF_MASK, context, "a"),
        commit_share(Share(1, 8), Kind.SELF_MASK, context, "a"),
    }
    assert len(found) == 6


def test_a_holding_survives_its_bytes_and_prints_nothing() -> None:
    holding = Holding(Share(2, 123456789), Share(2, 987654321))
    assert Holding.from_bytes(holding.to_bytes()) == holding
    assert "123456789" not in repr(holding)
    for size in (0, 67, 69):
        with pytest.raises(MalformedMessage, match="68 bytes"):
            Holding.from_bytes(bytes(size))


def test_seeds_give_unrelated_envelopes() -> None:
    fresh = RoundSecrets(Seed.fresh())
    assert deal(fresh, roster(), ALICE) != deal(secrets_of(ALICE), roster(), ALICE)
