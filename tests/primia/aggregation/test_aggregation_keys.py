from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primia.aggregation import client
from primia.aggregation.errors import BelowThreshold, InconsistentRound, InvalidSignature
from primia.aggregation.keys import Advertisement, KeyPair, RoundSecrets, commit
from primia.aggregation.quantise import MIN_EXPONENT
from primia.aggregation.roster import Roster
from primia.aggregation.server import check_advertisement
from primia.aggregation.terms import Groups, RoundId
from primia.errors import InvalidInput, MalformedMessage, PeerError
from primia.prg import Seed
from tests.primia.aggregation.federation import GROUPS, RUN, Federation, identity, names, verify

ALICE, BOB = KeyPair(bytes(range(32))), KeyPair(bytes(range(32, 64)))


def signed(advertisement: Advertisement, by: str | None = None) -> bytes:
    signer = identity(by or advertisement.node)
    return replace(advertisement, signature=signer.sign(advertisement.signed_bytes())).to_bytes()


@cache
def advertisements() -> Mapping[str, bytes]:
    return Federation.of(3).advertise().advertisements


def advertisement(node: str = "site-00") -> Advertisement:
    return Advertisement.parse(advertisements()[node])


def test_both_sides_agree_on_a_key_for_a_purpose() -> None:
    assert ALICE.agree(BOB.public, b"masks", 16) == BOB.agree(ALICE.public, b"masks", 16)
    assert ALICE.agree(BOB.public, b"masks", 16) != ALICE.agree(BOB.public, b"shares", 16)


def test_frozen_agreement() -> None:
    assert ALICE.public.hex() == "8f40c5adb68f25624ae5b214ea767a6ec94d829d3d7b5e1ad1ba6f3e2138285f"
    assert ALICE.agree(BOB.public, b"purpose", 16).hex() == "50aa7bf9ac277da489e8e404d77d32be"


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)])
def test_public_keys_of_low_order_are_refused(point: bytes) -> None:
    with pytest.raises(MalformedMessage, match="low order"):
        ALICE.agree(point, b"masks", 16)


def test_key_pairs_and_secrets_print_nothing_secret() -> None:
    secrets = RoundSecrets(Seed(b"0123456789abcdef"))
    for text in (repr(ALICE), repr(secrets), repr(secrets.masking())):
        assert ALICE.reveal().hex() not in text
        assert secrets.masking().reveal().hex() not in text
        assert "0123456789abcdef" not in text


def test_secrets_of_a_round_are_independent_functions_of_its_seed() -> None:
    one, same, other = (RoundSecrets(Seed(bytes([b]) * 16)) for b in (1, 1, 2))
    assert one.masking().public == same.masking().public
    assert len({p.public for s in (one, other) for p in (s.masking(), s.encryption())}) == 4
    draws = {one.coefficients(p, c).raw(33) for p in ("a", "b") for c in (b"x", b"y")}
    assert len(draws) == 4


def test_commitments_bind_round_node_and_seed() -> None:
    seed, round_id = Seed(bytes(16)), RoundId(RUN, 1)
    found = {
        commit(seed, round_id, "a"),
        commit(seed, round_id, "b"),
        commit(seed, RoundId(RUN, 2), "a"),
        commit(Seed(b"\x01" * 16), round_id, "a"),
    }
    assert len(found) == 4


def test_an_advertisement_survives_its_bytes() -> None:
    data = Federation.of(3).advertise().advertisements["site-01"]
    parsed = Advertisement.parse(data)
    assert parsed.to_bytes() == data
    assert parsed.node == "site-01"
    assert parsed.samples == 57
    assert parsed.groups == GROUPS
    assert len(data) < 300


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_advertisement(data: bytes) -> None:
    for candidate in (data, b"PGA2" + data):
        with contextlib.suppress(MalformedMessage):
            assert Advertisement.parse(candidate).to_bytes() == candidate


@settings(max_examples=300)
@given(st.integers(0, 213), st.integers(1, 255))
def test_any_altered_byte_is_refused(at: int, change: int) -> None:
    others = advertisements()
    data = bytearray(others["site-00"])
    data[at % len(data)] ^= change
    with pytest.raises(PeerError):
        Roster.of({**others, "site-00": bytes(data)}, verify)


def test_truncated_or_extended_bytes_are_refused() -> None:
    data = signed(advertisement())
    for size in range(len(data)):
        with pytest.raises(MalformedMessage):
            Advertisement.parse(data[:size])
    with pytest.raises(MalformedMessage, match="left over"):
        Advertisement.parse(data + b"\0")


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 0},
        {"threshold": 1},
        {"threshold": 251},
        {"samples": 0},
        {"samples": 2**31 + 1},
        {"exponents": (41, 0)},
        {"exponents": (0, 215)},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage, match="site-00 advertises"):
        Advertisement.parse(signed(replace(advertisement(), **change)))


@pytest.mark.parametrize(
    "change",
    [
        {"node": ""},
        {"node": "two words"},
        {"samples": 0},
        {"samples": 2**31 + 1},
        {"threshold": 1},
        {"threshold": 251},
    ],
    ids=str,
)
def test_a_node_refuses_terms_of_its_own_that_cannot_be(change: dict[str, Any]) -> None:
    terms: dict[str, Any] = {
        "round_id": RoundId(RUN, 1),
        "node": "site-00",
        "threshold": 2,
        "samples": 5,
        "groups": GROUPS,
        "exponents": (0, 0),
        "sign": identity("site-00").sign,
    }
    with pytest.raises(InvalidInput):
        client.advertise(Seed.fresh(), **{**terms, **change})


# --- the roster ---


def roster_of(change: Callable[[dict[str, bytes]], None]) -> Roster:
    advertisements = dict(Federation.of(4).advertise().advertisements)
    change(advertisements)
    return Roster.of(advertisements, verify)


def test_the_roster_does_not_depend_on_the_order_of_arrival() -> None:
    advertisements = Federation.of(4).advertise().advertisements
    forwards = Roster.of(advertisements, verify)
    backwards = Roster.of(dict(reversed(advertisements.items())), verify)
    assert forwards.context == backwards.context
    assert forwards.nodes == names(4)
    assert forwards.samples == 17 + 57 + 97 + 137
    assert forwards.weight(names(2)) == (17 + 57) / 308
    assert [forwards.position(node) for node in names(4)] == [0, 1, 2, 3]


def test_the_context_changes_with_every_advertisement() -> None:
    base = Federation.of(4).advertise()
    other_round = Federation.of(4, round_id=RoundId(RUN, 2)).advertise()
    fewer = base.advertise(names(3))
    contexts = {each.roster.context for each in (base, other_round, fewer)}
    assert len(contexts) == 3


def test_exponents_of_the_roster_are_the_largest() -> None:
    def raise_one(advertisements: dict[str, bytes]) -> None:
        entry = Advertisement.parse(advertisements["site-02"])
        changed = replace(entry, exponents=(9, MIN_EXPONENT))
        advertisements["site-02"] = signed(changed)

    parameters, buffers = roster_of(raise_one).exponents
    assert parameters == 9
    assert buffers == Federation.of(4).advertise().roster.exponents[1]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"round_id": RoundId(RUN, 2)}, InconsistentRound),
        ({"round_id": RoundId(bytes(16), 1)}, InconsistentRound),
        ({"threshold": 4}, InconsistentRound),
        ({"groups": Groups(38, 5)}, InconsistentRound),
        ({"node": "site-07"}, InconsistentRound),
    ],
    ids=str,
)
def test_advertisements_that_do_not_fit_together_are_refused(
    change: dict[str, Any], error: type[PeerError]
) -> None:
    def alter(advertisements: dict[str, bytes]) -> None:
        entry = Advertisement.parse(advertisements["site-02"])
        advertisements["site-02"] = signed(replace(entry, **change))

    with pytest.raises(error, match="site-0"):
        roster_of(alter)


@pytest.mark.parametrize("key", ["encryption_key", "masking_key"])
@pytest.mark.parametrize("of", ["encryption_key", "masking_key"])
@pytest.mark.parametrize("node", ["site-00", "site-02"])
def test_duplicate_keys_are_refused(key: str, of: str, node: str) -> None:
    if node == "site-02" and key == of:
        return  # its own key is not a duplicate

    def alter(advertisements: dict[str, bytes]) -> None:
        stolen = getattr(Advertisement.parse(advertisements[node]), of)
        entry = Advertisement.parse(advertisements["site-02"])
        advertisements["site-02"] = signed(replace(entry, **{key: stolen}))

    with pytest.raises(InconsistentRound, match="same key"):
        roster_of(alter)


def test_a_signature_of_another_node_is_refused() -> None:
    def alter(advertisements: dict[str, bytes]) -> None:
        entry = Advertisement.parse(advertisements["site-02"])
        advertisements["site-02"] = signed(entry, by="site-01")

    with pytest.raises(InvalidSignature, match="site-02's advertisement is not signed by it"):
        roster_of(alter)


def test_too_small_rosters_are_refused() -> None:
    advertisements = Federation.of(4).advertise().advertisements
    for count in range(3):
        chosen = {node: advertisements[node] for node in names(count)}
        with pytest.raises(BelowThreshold):
            Roster.of(chosen, verify)


def test_a_threshold_that_is_no_majority_of_the_roster_is_refused() -> None:
    with pytest.raises(InconsistentRound, match="no majority"):
        _ = Federation.of(4, threshold=2).advertise().roster


def test_too_large_rosters_are_refused_unread() -> None:
    with pytest.raises(MalformedMessage, match="251 nodes"):
        Roster.of(dict.fromkeys((str(at) for at in range(251)), b""), verify)


def test_nodes_that_are_not_in_the_roster_are_refused() -> None:
    roster = Federation.of(3).advertise().roster
    with pytest.raises(InconsistentRound, match="mallory is not in the round's roster"):
        roster.entry("mallory")
    with pytest.raises(InconsistentRound, match="distinct nodes"):
        roster.subset([*names(3), "mallory"], "nodes")
    with pytest.raises(InconsistentRound, match="distinct nodes"):
        roster.subset(["site-00", "site-00"], "nodes")


def test_the_owner_checks_an_advertisement_when_it_arrives() -> None:
    data = signed(advertisement())
    terms = (RoundId(RUN, 1), 2, GROUPS, verify)
    assert check_advertisement(data, "site-00", *terms).to_bytes() == data
    for changed in (
        ("site-01", RoundId(RUN, 1), 2, GROUPS, verify),
        ("site-00", RoundId(RUN, 2), 2, GROUPS, verify),
        ("site-00", RoundId(RUN, 1), 3, GROUPS, verify),
        ("site-00", RoundId(RUN, 1), 2, Groups(1, 1), verify),
    ):
        with pytest.raises(InconsistentRound):
            check_advertisement(data, *changed)
    with pytest.raises(InvalidSignature):
        check_advertisement(signed(advertisement(), by="site-01"), "site-00", *terms)
