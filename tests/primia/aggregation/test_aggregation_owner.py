"""An owner or a node that does not follow the protocol, and what the honest ones answer."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primia.aggregation import client, server
from primia.aggregation.envelopes import Kind
from primia.aggregation.errors import BelowThreshold, InconsistentRound, InvalidSignature
from primia.aggregation.keys import Advertisement
from primia.aggregation.opening import recover
from primia.aggregation.state import NodeState
from primia.aggregation.survivors import Outcome, Reveal
from primia.aggregation.terms import RoundId
from primia.errors import MalformedMessage, PeerError, UnexpectedMessage
from primia.prg import Seed
from primia.sharing import PRIME, Share
from tests.primia.aggregation.federation import RUN, Federation, identity, names, verify

START = Federation.of(5)
ADVERTISED = START.advertise()
SHARED = ADVERTISED.share()
MASKED = SHARED.mask()
ROUND = MASKED.confirm().reveal()
ALICE, BOB, CAROL, DAVE, EVE = names(5)


# --- a malicious owner ---


def test_different_survivor_sets_for_different_nodes_open_nothing() -> None:
    """The owner has five vectors. It tells two nodes that all survive and three that Alice dropped,
    to get shares of both of Alice's secrets. Neither set has three confirmations... but for the
    majority's: then the minority reveals nothing."""
    everyone, without = names(5), names(5)[1:]
    told = {ALICE: everyone, BOB: everyone, CAROL: without, DAVE: without, EVE: without}
    states, signatures = {}, {}
    for node, survivors in told.items():
        signer = identity(node).sign
        states[node], signatures[node] = client.confirm(MASKED.states[node], survivors, signer)
    for node in (ALICE, BOB):
        with pytest.raises(BelowThreshold, match="Only 2 valid confirmations"):
            client.reveal(states[node], everyone, signatures, verify)
        with pytest.raises((UnexpectedMessage, InconsistentRound)):
            client.reveal(states[node], without, signatures, verify)
    kinds = set()
    for node in (CAROL, DAVE, EVE):
        _, data = client.reveal(states[node], without, signatures, verify)
        kinds.add(Reveal.parse(data).shares[ALICE][0])
    assert kinds == {Kind.MASKING_KEY}


def test_different_members_for_different_nodes_are_found_out() -> None:
    """Alice's envelopes are withheld from Bob, Carol and Dave; the others think she takes part."""
    without = names(5)[1:]
    told = {ALICE: names(5), BOB: without, CAROL: without, DAVE: without, EVE: names(5)}
    states, signatures = {}, {}
    for node, members in told.items():
        inbox = {dealer: SHARED.inbox(node)[dealer] for dealer in members}
        states[node], _ = client.mask(SHARED.states[node], inbox, START.updates[node])
    for node in without:
        signer = identity(node).sign
        states[node], signatures[node] = client.confirm(states[node], without, signer)
    with pytest.raises(BelowThreshold, match="Only 1 valid confirmations"):
        client.reveal(states[EVE], without, signatures, verify)


def test_different_rosters_for_different_nodes_are_found_out() -> None:
    """Eve is hidden from Alice: Alice's envelopes open for nobody who knows of Eve."""
    hidden = {node: ADVERTISED.advertisements[node] for node in names(4)}
    _, sealed = client.share(ADVERTISED.states[ALICE], hidden, verify)
    inbox = {**SHARED.inbox(BOB), ALICE: sealed[BOB]}
    with pytest.raises(MalformedMessage, match=f"envelope from {ALICE} is not authentic"):
        client.mask(SHARED.states[BOB], inbox, START.updates[BOB])


def test_keys_that_the_owner_swapped_are_refused() -> None:
    """A man in the middle: the owner puts keys of its own into Bob's advertisement."""
    own = Advertisement.parse(ADVERTISED.advertisements[BOB])
    for change in ({"encryption_key": bytes(31) + b"\x09"}, {"masking_key": bytes(31) + b"\x09"}):
        forged = replace(own, **change)  # type: ignore[arg-type]
        roster = {**ADVERTISED.advertisements, BOB: forged.to_bytes()}
        with pytest.raises(InvalidSignature, match=BOB):
            client.share(ADVERTISED.states[ALICE], roster, verify)


def test_a_node_that_the_owner_invents_is_refused() -> None:
    invented = Federation.of(5, seeds={n: Seed.fresh() for n in names(5)}).advertise()

    def enrolled(node: str, message: bytes, signature: bytes) -> bool:
        return node != EVE and verify(node, message, signature)

    roster = {**ADVERTISED.advertisements, EVE: invented.advertisements[EVE]}
    with pytest.raises(InvalidSignature, match=EVE):
        client.share(ADVERTISED.states[ALICE], roster, enrolled)


def test_advertisements_of_other_rounds_are_refused() -> None:
    for round_id in (RoundId(RUN, 2), RoundId(bytes(16), 1)):
        other = Federation.of(5, round_id=round_id).advertise()
        roster = {**ADVERTISED.advertisements, BOB: other.advertisements[BOB]}
        with pytest.raises(InconsistentRound):
            client.share(ADVERTISED.states[ALICE], roster, verify)
        with pytest.raises(InconsistentRound, match=f"alters the advertisement of {ALICE}"):
            client.share(ADVERTISED.states[ALICE], other.advertisements, verify)


def test_an_older_advertisement_of_the_node_itself_is_refused() -> None:
    """Replayed from a first try at the same round, under keys that this state does not hold."""
    seeds = {**START.seeds, ALICE: Seed.fresh()}
    first_try = Federation.of(5, seeds=seeds).advertise().advertisements[ALICE]
    roster = {**ADVERTISED.advertisements, ALICE: first_try}
    with pytest.raises(InconsistentRound, match=f"alters the advertisement of {ALICE}"):
        client.share(ADVERTISED.states[ALICE], roster, verify)


def test_envelopes_altered_misdirected_or_replayed_are_refused() -> None:
    inbox = SHARED.inbox(ALICE)
    altered = bytes([*inbox[BOB][:-1], inbox[BOB][-1] ^ 1])
    for_carol = SHARED.inbox(CAROL)[BOB]
    other_round = Federation.of(5, round_id=RoundId(RUN, 2)).advertise().share().inbox(ALICE)[BOB]
    own = inbox[ALICE]
    for data in (altered, for_carol, other_round, own, inbox[CAROL], b"", inbox[BOB] + b"\0"):
        with pytest.raises(MalformedMessage):
            client.mask(SHARED.states[ALICE], {**inbox, BOB: data}, START.updates[ALICE])


def test_envelopes_from_outside_the_roster_are_refused() -> None:
    inbox = {**SHARED.inbox(ALICE), "mallory": SHARED.inbox(ALICE)[BOB]}
    with pytest.raises(InconsistentRound, match="distinct nodes of the round's roster"):
        client.mask(SHARED.states[ALICE], inbox, START.updates[ALICE])


def test_confirmations_forged_borrowed_or_replayed_do_not_count() -> None:
    confirmed = MASKED.confirm()
    own = confirmed.confirmations[ALICE]
    replayed = Federation.of(5, round_id=RoundId(RUN, 2)).advertise().share().mask().confirm()
    for others in (
        dict.fromkeys(names(5)[1:], own),
        dict.fromkeys(names(5)[1:], bytes(64)),
        dict.fromkeys(names(5)[1:], b""),
        {node: replayed.confirmations[node] for node in names(5)[1:]},
        {f"sybil-{at}": own for at in range(4)},
    ):
        with pytest.raises(BelowThreshold, match="Only 1 valid confirmations"):
            client.reveal(confirmed.states[ALICE], names(5), {ALICE: own, **others}, verify)


def test_a_dropped_nodes_confirmation_does_not_count() -> None:
    masked = replace(MASKED, vectors={node: MASKED.vectors[node] for node in (ALICE, BOB, CAROL)})
    confirmed = masked.confirm()
    signed = confirmed.outcome.signed_bytes(confirmed.roster)
    given_ = {ALICE: confirmed.confirmations[ALICE], BOB: confirmed.confirmations[BOB]}
    given_ |= {node: identity(node).sign(signed) for node in (DAVE, EVE)}
    with pytest.raises(BelowThreshold, match="Only 2 valid"):
        client.reveal(confirmed.states[ALICE], (ALICE, BOB, CAROL), given_, verify)


def test_survivors_that_never_shared_are_refused() -> None:
    shared = ADVERTISED.share(names(4))
    masked = shared.mask()
    with pytest.raises(InconsistentRound, match="never shared"):
        client.confirm(masked.states[ALICE], names(5), identity(ALICE).sign)


# --- malicious nodes, and the owner's checks ---


def falsified(data: bytes, dealer: str, *, value: int = 1, kind: Kind | None = None) -> bytes:
    reveal = Reveal.parse(data)
    old_kind, share = reveal.shares[dealer]
    changed = Share(share.point, (share.reveal() + value) % PRIME)
    return Reveal(
        reveal.context, {**reveal.shares, dealer: (old_kind if kind is None else kind, changed)}
    ).to_bytes()


def check(data: bytes, node: str = BOB) -> None:
    server.check_reveal(ROUND.roster, ROUND.envelopes, ROUND.outcome, node, data)


def test_false_reveals_are_set_aside_as_long_as_enough_true_ones_are_left() -> None:
    reveals = {
        **ROUND.reveals,
        ALICE: falsified(ROUND.reveals[ALICE], CAROL),
        EVE: b"not a reveal",
    }
    round_ = replace(ROUND, reveals=reveals)
    assert np.all(np.abs(round_.open() - round_.expected()) <= round_.bounds())
    found = recover(round_.roster, round_.envelopes, round_.outcome, reveals)
    assert set(found.rejected) == {ALICE, EVE}
    assert f"false share of {CAROL}'s secret" in found.rejected[ALICE]
    fewer = {node: reveals[node] for node in (ALICE, BOB, CAROL, EVE)}
    with pytest.raises(BelowThreshold, match="Only 2 nodes revealed valid shares") as caught:
        replace(round_, reveals=fewer).open()
    assert caught.value.extra["rejected"] == found.rejected


def test_a_refused_opening_changes_nothing() -> None:
    total = ROUND.sum()
    before = total.copy()
    with pytest.raises(BelowThreshold):
        server.unmask(total, ROUND.roster, ROUND.envelopes, ROUND.outcome, {})
    assert np.array_equal(total, before)


def test_the_owner_refuses_a_false_reveal_when_it_arrives() -> None:
    good = ROUND.reveals[BOB]
    check(good)
    reveal = Reveal.parse(good)
    bad = {
        "share": falsified(good, CAROL),
        "kind": falsified(good, CAROL, value=0, kind=Kind.MASKING_KEY),
        "missing": Reveal(
            reveal.context, {n: s for n, s in reveal.shares.items() if n != EVE}
        ).to_bytes(),
        "another round": Reveal(bytes(32), reveal.shares).to_bytes(),
        "another's": ROUND.reveals[CAROL],
    }
    for data in bad.values():
        with pytest.raises(InconsistentRound, match=BOB):
            check(data)


def test_a_reveal_of_a_node_that_does_not_survive_is_set_aside() -> None:
    masked = replace(MASKED, vectors={node: MASKED.vectors[node] for node in names(3)})
    done = masked.confirm().reveal()
    reveals = {**done.reveals, EVE: done.reveals[ALICE]}
    found = recover(done.roster, done.envelopes, done.outcome, reveals)
    assert found.rejected == {EVE: f"{EVE} is no survivor of the round."}
    assert set(found.masking_keys) == {DAVE, EVE}


@pytest.mark.parametrize("victims", [names(5), names(5)[1:]], ids=["self mask", "masking key"])
def test_a_dealer_of_shares_that_fit_no_secret_is_named(
    victims: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alice shares other secrets than she advertised, and commits to the false shares."""
    lying = replace(ADVERTISED, states={**ADVERTISED.states, ALICE: liar()})
    masked = lying.share().mask()
    masked = replace(masked, vectors={node: masked.vectors[node] for node in victims})
    done = masked.confirm().reveal()
    with pytest.raises(InconsistentRound, match=f"{ALICE} dealt shares that do not give") as caught:
        done.open()
    assert caught.value.extra["node"] == ALICE


def liar() -> NodeState:
    class Lying(type(ADVERTISED.states[ALICE].secrets)):  # type: ignore[misc]
        def self_mask(self) -> Seed:
            return Seed(bytes(16))

        def masking(self) -> object:
            true = super().masking()

            class Key:
                public = true.public
                agree = true.agree

                def reveal(self) -> bytes:
                    return bytes(range(32))

            return Key()

    state = ADVERTISED.states[ALICE]
    return replace(state, secrets=Lying(state.secrets.seed))


def test_envelopes_are_checked_when_they_arrive() -> None:
    roster, sealed = SHARED.roster, dict(SHARED.envelopes[ALICE])
    server.check_envelopes(roster, ALICE, sealed)
    missing = {holder: data for holder, data in sealed.items() if holder != EVE}
    for bad in ({}, missing, {**sealed, "mallory": sealed[BOB]}):
        with pytest.raises(InconsistentRound, match="one envelope to each of its holders"):
            server.check_envelopes(roster, ALICE, bad)
    with pytest.raises(MalformedMessage):
        server.check_envelopes(roster, ALICE, {**sealed, BOB: sealed[BOB][:-1]})
    with pytest.raises(InconsistentRound, match="mallory is not in the round's roster"):
        server.check_envelopes(roster, "mallory", sealed)


def test_confirmations_are_checked_when_they_arrive() -> None:
    roster, outcome = ROUND.roster, ROUND.outcome
    good = ROUND.confirmations[BOB]
    server.check_confirmation(roster, outcome, BOB, good, verify)
    fewer = Outcome.of(roster, names(5), names(4))
    for node, seen, signature in (
        (BOB, outcome, ROUND.confirmations[CAROL]),
        (BOB, outcome, b""),
        (BOB, fewer, good),
        (EVE, fewer, ROUND.confirmations[EVE]),
    ):
        with pytest.raises(InvalidSignature, match=node):
            server.check_confirmation(roster, seen, node, signature, verify)


def test_an_outcome_needs_the_threshold_twice() -> None:
    roster = ADVERTISED.roster
    with pytest.raises(BelowThreshold, match="Only 2 nodes shared their keys; the threshold is 3"):
        Outcome.of(roster, names(2), names(2))
    with pytest.raises(BelowThreshold, match="Only 2 nodes delivered their update"):
        Outcome.of(roster, names(5), names(2))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_reveal(data: bytes) -> None:
    for candidate in (data, b"PGR1" + data, b"PGR1" + bytes(32) + data):
        with contextlib.suppress(MalformedMessage):
            parsed = Reveal.parse(candidate)
            assert Reveal.parse(parsed.to_bytes()) == parsed


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_any_altered_byte_of_a_reveal_is_refused(at: int, change: int) -> None:
    data = bytearray(ROUND.reveals[BOB])
    data[at % len(data)] ^= change
    with pytest.raises(PeerError):
        check(bytes(data))


def test_a_reveal_that_names_a_dealer_twice_or_too_many_is_refused() -> None:
    head = b"PGR1" + bytes(32)
    entry = b"\x01\x00\x00\x00a" + b"\x00" + Share(1, 5).to_bytes()
    assert list(Reveal.parse(head + b"\x01\x00" + entry).shares) == ["a"]
    for data, named in (
        (head + b"\x02\x00" + entry + entry, "twice"),
        (head + b"\xfb\x00", "251 shares"),
        (head + b"\x01\x00" + entry[:5] + b"\x02" + entry[6:], "kind 2"),
        (head + b"\x01\x00" + entry + b"\0", "left over"),
    ):
        with pytest.raises(MalformedMessage, match=named):
            Reveal.parse(data)
