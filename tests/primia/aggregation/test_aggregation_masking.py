from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest
from numpy.typing import NDArray

from primia.aggregation import client
from primia.aggregation.keys import RoundSecrets
from primia.aggregation.masking import Mask, apply_masks, pairwise_mask, self_mask
from primia.aggregation.quantise import encode
from primia.aggregation.terms import Groups, RoundId
from primia.prg import Seed, Stream
from tests.primia.aggregation.federation import RUN, Federation, frozen_federation, names

ALICE, BOB, CAROL = names(3)
FEDERATION = frozen_federation().advertise()


def secrets_of(node: str) -> RoundSecrets:
    return RoundSecrets(FEDERATION.seeds[node])


def words(mask: Mask, count: int = 100) -> NDArray[np.uint32]:
    vector = np.zeros(count, dtype=np.uint32)
    apply_masks(vector, [mask])
    return vector


def pairwise(node: str, peer: str, holder: str | None = None) -> Mask:
    return pairwise_mask(secrets_of(holder or node).masking(), FEDERATION.roster, node, peer)


def test_pairwise_masks_cancel() -> None:
    for one, other in ((ALICE, BOB), (BOB, CAROL), (ALICE, CAROL)):
        assert not np.any(words(pairwise(one, other)) + words(pairwise(other, one)))


def test_the_lower_name_adds() -> None:
    assert not pairwise(ALICE, BOB).negative
    assert pairwise(BOB, ALICE).negative


def test_either_private_key_gives_the_mask() -> None:
    """So the owner can remove a dropped node's mask from a survivor's vector."""
    by_alice, by_bob = pairwise(ALICE, BOB, holder=ALICE), pairwise(ALICE, BOB, holder=BOB)
    assert by_alice == by_bob


def test_a_mask_is_the_aes_stream_of_its_seed() -> None:
    mask = self_mask(Seed(bytes(16)), FEDERATION.roster)
    assert np.array_equal(words(mask), Stream(Seed(bytes(16)), mask.label).words(100))
    assert np.array_equal(words(mask.inverse()), -Stream(Seed(bytes(16)), mask.label).words(100))


def test_masks_of_pairs_and_nodes_differ() -> None:
    masks = [pairwise(a, b) for a, b in ((ALICE, BOB), (ALICE, CAROL), (BOB, CAROL))]
    masks += [self_mask(secrets_of(node).self_mask(), FEDERATION.roster) for node in names(3)]
    assert len({words(mask).tobytes() for mask in masks}) == 6


@pytest.mark.parametrize("round_id", [RoundId(RUN, 2), RoundId(bytes(16), 1)], ids=["round", "run"])
def test_labels_and_seeds_bind_run_and_round(round_id: RoundId) -> None:
    """Even a node that reused its seed would not reuse a mask."""
    other = Federation.of(3, round_id=round_id).advertise().roster
    pair = secrets_of(ALICE).masking()
    seen, changed = (pairwise_mask(pair, each, ALICE, BOB) for each in (FEDERATION.roster, other))
    assert seen.label != changed.label
    assert seen.seed != changed.seed
    own = secrets_of(ALICE).self_mask()
    assert self_mask(own, FEDERATION.roster).label != self_mask(own, other).label


def test_chunks_do_not_show() -> None:
    count = (1 << 18) * 2 + 77
    mask = self_mask(Seed(bytes(16)), FEDERATION.roster)
    start = np.arange(count, dtype=np.uint32)
    vector = start.copy()
    apply_masks(vector, [mask, pairwise(BOB, ALICE)])
    expected = start + Stream(mask.seed, mask.label).words(count)
    expected -= Stream(pairwise(BOB, ALICE).seed, pairwise(BOB, ALICE).label).words(count)
    assert np.array_equal(vector, expected)


def hexadecimal(mask: Mask) -> str:
    return " ".join(f"{word:08x}" for word in words(mask, 4))


def test_frozen_masks() -> None:
    assert hexadecimal(pairwise(ALICE, BOB)) == "ceeb2543 a75a2254 471e7527 2e256612"
    own = self_mask(secrets_of(ALICE).self_mask(), FEDERATION.roster)
    assert hexadecimal(own) == "c9be1ea9 a85b0747 358b5585 3a0c475b"


def test_the_masked_vector_is_the_papers_formula() -> None:
    """y_i = v_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)."""
    masked = FEDERATION.share().mask().vectors[BOB]
    roster, groups = FEDERATION.roster, FEDERATION.groups
    expected = np.empty(groups.size, dtype=np.uint32)
    samples = FEDERATION.samples[BOB]
    encode(FEDERATION.updates[BOB], groups, roster.exponents, samples, roster.samples, out=expected)
    own = self_mask(secrets_of(BOB).self_mask(), roster)
    expected += Stream(own.seed, own.label).words(groups.size)
    expected += Stream(pairwise(BOB, CAROL).seed, pairwise(BOB, ALICE).label).words(groups.size)
    expected -= Stream(pairwise(BOB, ALICE).seed, pairwise(BOB, ALICE).label).words(groups.size)
    assert np.array_equal(masked, expected)


def test_frozen_masked_vector() -> None:
    """Seeds, samples and update fixed: every byte of the answer is."""
    masked = FEDERATION.share().mask().vectors[BOB]
    assert (
        sha256(masked.tobytes()).hexdigest()
        == "c8537fc02b2e3f3e2ddcfe4142dd125522a0a733c2c91762ecd6d5182605b924"
    )


def masked_update(value: float, seed: Seed) -> NDArray[np.uint32]:
    """Alice's masked vector of 65 536 equal values, the others' as they are."""
    groups = Groups(1 << 16, 0)
    update = np.full(groups.size, value, dtype=np.float32)
    updates = dict.fromkeys(names(3), update)
    seeds = {**FEDERATION.seeds, ALICE: seed}
    federation = Federation.of(3, groups=groups, updates=updates, seeds=seeds)
    shared = federation.advertise().share()
    _, vector = client.mask(shared.states[ALICE], shared.inbox(ALICE), update)
    return vector


def chi_squared(vector: NDArray[np.uint32], shift: int) -> float:
    counts = np.bincount(vector >> np.uint32(shift) & np.uint32(0xFF), minlength=256)
    expected = len(vector) / 256
    return float(np.sum((counts - expected) ** 2 / expected))


@pytest.mark.parametrize("value", [0.0, 0.75, -1e-6], ids=str)
def test_a_masked_update_is_uniform_whatever_it_hides(value: float) -> None:
    """Each of its four bytes, and its XOR with its neighbour; 255 degrees of freedom, six standard
    deviations on either side."""
    vector = masked_update(value, Seed(bytes([77]) * 16))
    for shift in (0, 8, 16, 24):
        assert 120 < chi_squared(vector, shift) < 390
        assert 120 < chi_squared(vector[:-1] ^ vector[1:], shift) < 390


def test_without_its_masks_the_same_test_fails() -> None:
    """The distribution test can fail: the encoded update is no uniform vector."""
    update = np.full(1 << 16, 0.75, dtype=np.float32)
    out = np.empty(1 << 16, dtype=np.uint32)
    encode(update, Groups(1 << 16, 0), (0, -40), 1, 3, out)
    assert chi_squared(out, 24) > 1e6


def test_the_difference_of_two_masked_updates_of_fresh_rounds_tells_nothing() -> None:
    one = masked_update(0.75, Seed.fresh())
    other = masked_update(0.75, Seed.fresh())
    for shift in (0, 8, 16, 24):
        assert 120 < chi_squared(one - other, shift) < 390
