from __future__ import annotations

import contextlib
import copy
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primia.errors import MalformedMessage
from primia.prg import Seed, Stream
from primia.sharing import (
    ELEMENT_BYTES,
    MAX_SHARES,
    PRIME,
    SHARE_BYTES,
    Share,
    WrongShares,
    combine,
    split,
)

SEED = Seed(bytes(range(16)))
SECRET = bytes(range(100, 132))


def stream(label: str = "test") -> Stream:
    return Stream(SEED, label)


def is_prime(value: int) -> bool:
    """Miller and Rabin, forty bases."""
    odd, twos = value - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        power = pow(base, odd, value)
        if power in (1, value - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % value
            if power == value - 1:
                break
        else:
            return False
    return True


def test_the_field_is_a_field_and_the_smallest_above_256_bits() -> None:
    assert is_prime(PRIME)
    assert not any(is_prime(2**256 + offset) for offset in range(1, 297, 2))
    assert PRIME < 1 << 8 * ELEMENT_BYTES


@pytest.mark.parametrize("count", range(1, 7))
def test_every_threshold_of_every_set_gives_the_secret(count: int) -> None:
    for threshold in range(1, count + 1):
        shares = split(SECRET, threshold, count, stream())
        for chosen in combinations(shares, threshold):
            assert combine(chosen, threshold, 32) == SECRET
            assert combine(reversed(chosen), threshold, 32) == SECRET


def test_fewer_shares_than_the_threshold_fit_every_secret() -> None:
    """With t - 1 shares fixed, each candidate secret lies on exactly one polynomial: the missing
    share that leads to it exists."""
    shares = split(SECRET, 3, 5, stream())
    known = [shares[0], shares[3]]
    for candidate in (0, 1, 2**255, 2**256 - 1):
        # the third share is linear in the secret: solve by two probes
        zero, one = (third_share(known, value) for value in (0, 1))
        third = (zero + candidate * (one - zero)) % PRIME
        assert combine([*known, Share(5, third)], 3, 32) == candidate.to_bytes(32, "little")


def third_share(known: list[Share], secret: int) -> int:
    """f(5) of the parabola through the known shares with f(0) = secret."""
    points = [(0, secret)] + [(share.point, share.reveal()) for share in known]
    value = 0
    for x, y in points:
        weight = y
        for other, _ in points:
            if other != x:
                weight = weight * (5 - other) * pow(x - other, -1, PRIME) % PRIME
        value += weight
    return value % PRIME


def test_shares_of_two_secrets_are_distributed_alike() -> None:
    """The top byte below 2^256 of one share over many sharings is uniform for either secret."""
    for secret in (bytes(32), b"\xff" * 32):
        tops = [
            split(secret, 2, 2, stream(f"{at}"))[0].reveal() >> 248 & 0xFF for at in range(4096)
        ]
        counts = np.bincount(tops, minlength=256)
        chi_squared = float(np.sum((counts - 16) ** 2 / 16))
        assert 150 < chi_squared < 380  # 255 degrees of freedom: 255 +- 5.5 deviations


def test_false_shares_do_not_give_the_secret() -> None:
    shares = split(SECRET, 2, 3, stream())
    altered = Share(1, (shares[0].reveal() + 1) % PRIME)
    with contextlib.suppress(WrongShares):
        assert combine([altered, shares[1]], 2, 32) != SECRET


def test_a_value_beyond_the_secret_size_is_refused() -> None:
    shares = split(SECRET, 2, 3, stream())
    with pytest.raises(WrongShares, match="size"):
        combine(shares, 2, 16)


def test_too_few_or_repeated_shares_are_refused() -> None:
    shares = split(SECRET, 3, 3, stream())
    with pytest.raises(WrongShares, match="too few"):
        combine(shares[:2], 3, 32)
    with pytest.raises(WrongShares, match="same point"):
        combine([shares[0], shares[1], shares[0]], 3, 32)


@pytest.mark.parametrize(
    ("threshold", "count"), [(0, 3), (4, 3), (2, MAX_SHARES + 1), (1, 0), (-1, 2)]
)
def test_bad_thresholds_are_refused(threshold: int, count: int) -> None:
    with pytest.raises(ValueError, match="threshold"):
        split(SECRET, threshold, count, stream())


def test_a_long_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        split(bytes(33), 2, 3, stream())


def test_the_most_shares_there_can_be() -> None:
    shares = split(SECRET, 128, MAX_SHARES, stream())
    assert len({share.point for share in shares}) == MAX_SHARES
    assert combine(shares[100:], 128, 32) == SECRET


def test_elements_beyond_the_field_are_drawn_again() -> None:
    class Scripted:
        draws = iter([b"\xff" * 33, PRIME.to_bytes(33, "little"), (7).to_bytes(33, "little")])

        def raw(self, size: int) -> bytes:
            return next(self.draws)

    shares = split(b"\x05", 2, 2, Scripted())  # type: ignore[arg-type]
    assert [share.reveal() for share in shares] == [12, 19]


def test_the_unused_bits_of_a_draw_are_dropped() -> None:
    class Scripted:
        def raw(self, size: int) -> bytes:
            return (7 | 0xFE << 256).to_bytes(33, "little")

    assert split(b"\x05", 2, 1 + 1, Scripted())[0].reveal() == 12  # type: ignore[arg-type]


FROZEN = (
    "01d92aee38208980e73fbbe139b280ee2a4d95a6ffecd5464ae212b9910f14dbac00",
    "024ef0750ad8a8966313095504f48f6ae225b5d6876132131948a8f3a39ea633d600",
    "03c3b5fddb8fc8acdfe656c8ce359fe699fed40610d68edfe7ad3d2eb62d398cff00",
)


def test_frozen_shares() -> None:
    shares = split(SECRET, 2, 3, stream("frozen"))
    assert [share.to_bytes().hex() for share in shares] == list(FROZEN)
    assert combine([Share.from_bytes(bytes.fromhex(text)) for text in FROZEN[1:]], 2, 32) == SECRET


@pytest.mark.parametrize(
    "text",
    [
        "",
        "01" + "00" * 32,
        "01" + "00" * 34,
        "00" + "00" * 33,  # point 0 is the secret itself
        "01" + PRIME.to_bytes(33, "little").hex(),
        "01" + "ff" * 33,
    ],
)
def test_frozen_bad_shares(text: str) -> None:
    with pytest.raises(MalformedMessage):
        Share.from_bytes(bytes.fromhex(text))


@given(st.integers(1, MAX_SHARES), st.integers(0, PRIME - 1))
def test_shares_survive_their_bytes(point: int, value: int) -> None:
    share = Share(point, value)
    data = share.to_bytes()
    assert len(data) == SHARE_BYTES
    assert Share.from_bytes(data) == share


@given(st.binary(max_size=40))
def test_arbitrary_bytes_parse_to_themselves_or_are_refused(data: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        assert Share.from_bytes(data).to_bytes() == data


def test_bad_values_are_refused() -> None:
    for point, value in ((0, 1), (256, 1), (1, -1), (1, PRIME)):
        with pytest.raises(ValueError):
            Share(point, value)


def test_a_share_keeps_its_secret() -> None:
    share = Share(3, 123456789)
    assert repr(share) == "Share(point=3, <secret>)"
    assert share != Share(3, 123456788)
    with pytest.raises(TypeError):
        copy.copy(share)  # by the door that pickle uses
    with pytest.raises(TypeError):
        hash(share)
