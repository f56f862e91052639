import hashlib
import io
import math
import weakref

import numpy as np
import pytest

from primia.errors import InvalidInput, MalformedMessage
from primia.mpc.dealer import deal
from primia.mpc.masks import weight_mask
from primia.mpc.material import (
    HEADER_BYTES,
    PARTS,
    Cursor,
    Half,
    Manifest,
    half_size,
    part_size,
)
from primia.mpc.opening import opening_size, parse_opening, write_opening
from primia.mpc.party import PreparedOpening
from primia.mpc.sinks import Sinks
from tests.support.inference import DEAL, Builder, dealt, resnet18, seed, weights_for


def tiny_plan(bits=6):
    b = Builder((1, 6, 5))
    b.head(b.max_pool(b.relu(b.conv(0, 2)), 2, 2, 0), 3)
    return b.plan(bits, "label")


PLAN = tiny_plan()


@pytest.fixture(scope="module")
def parts():
    return dealt(PLAN, 2, seed(1), seed(2))


def test_sizes_are_known_beforehand(parts):
    for part in PARTS:
        assert len(getattr(parts, part)) == part_size(PLAN, 2, part)
    for party in (0, 1):
        assert len(parts.half(party)) == half_size(PLAN, 2, party)


@pytest.mark.parametrize("party", [0, 1])
def test_a_party_gets_what_its_seed_does_not_give(party):
    """C0 is P0's; of a gate's items each party gets about half."""
    shapes, gates = PLAN.shapes(), PLAN.gates()
    linear = [shape for op, shape in zip(PLAN.ops, shapes[1:], strict=True) if "out" in repr(op)]
    words = 0 if party else sum(math.prod(shape) for shape in linear)
    sizes = {(True, 2, 1): (2, 3), (False, 2, 1): (1, 1), (False, 3, 2): (8, 9)}
    each = [sizes[gate.widen, gate.ways, gate.payloads][party] for gate in gates]
    assert sorted(each) == [[1, 1, 2, 8], [1, 1, 3, 9]][party]
    words += sum(n * gate.count for n, gate in zip(each, gates, strict=True))
    size = part_size(PLAN, 3, PARTS[party]) - HEADER_BYTES
    assert 0 <= size - 3 * 4 * words < 16


def test_the_halves_of_a_large_model_are_of_about_one_size():
    sizes = [half_size(resnet18(224), 1, party) for party in (0, 1)]
    assert abs(sizes[0] - sizes[1]) < 0.01 * sizes[0]


def test_a_deal_is_reproducible_from_its_root_and_fresh_without(parts):
    again = dealt(PLAN, 2, seed(1), seed(2))
    assert [again.p0, again.p1, again.common] == [parts.p0, parts.p1, parts.common]
    first, second = (dealt(PLAN, 2, seed(1), None) for _ in range(2))
    assert first.p0 != second.p0
    assert first.p1 != second.p1
    assert first.common != second.common


class Chunks:
    """A sink that remembers the sizes it was given."""

    def __init__(self):
        self.sizes = []

    def write(self, data):
        self.sizes.append(len(data))


def test_a_deal_is_streamed_layer_by_layer():
    """No chunk is larger than a layer's result or a block of keys."""
    plan = resnet18(32)
    sinks = Sinks(*(Chunks() for _ in range(3)))
    deal(plan, 1, seed(1), DEAL, sinks)
    assert sum(sinks.common.sizes) == part_size(plan, 1, "common")
    assert len(sinks.common.sizes) == 1 + sum(gate.bits for gate in plan.gates())
    largest = max(gate.key.key_bytes(gate.count) for gate in plan.gates())
    assert max(sinks.common.sizes) == largest
    assert max(sinks.p0.sizes) == 4 * max(math.prod(shape) for shape in plan.shapes())


def test_halves_parse_and_yield_their_sections(parts):
    for party in (0, 1):
        half = Half.open(parts.half(party), PLAN, 2, party, DEAL)
        assert half.deal_id == DEAL
        assert half.seed == seed(2).derive(f"p{party}")
        keys = half.keys()
        assert keys.take(PLAN.bill(2).key_bytes).tobytes() == parts.common[HEADER_BYTES:]
        with pytest.raises(AssertionError):
            keys.take(1)


def test_a_file_is_mapped(parts, tmp_path):
    path = tmp_path / "half"
    path.write_bytes(parts.half(1))
    half = Half.map(path, PLAN, 2, 1)
    assert half.keys().take(16).tobytes() == parts.common[HEADER_BYTES:][:16]
    half.close()
    with pytest.raises(MalformedMessage, match="closed"):
        half.keys()
    path.write_bytes(b"")
    with pytest.raises(MalformedMessage, match="empty"):
        Half.map(path, PLAN, 2, 1)


def flip(data, at):
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    ("at", "reason"),
    [(0, "first bytes"), (4, "version"), (6, "part"), (8, "plan"), (40, "deal"), (56, "batch")],
)
@pytest.mark.parametrize("section", ["own", "common"])
def test_a_wrong_header_is_refused(parts, at, reason, section):
    offset = 0 if section == "own" else part_size(PLAN, 2, "p0")
    with pytest.raises(MalformedMessage, match=reason):
        Half.open(flip(parts.half(0), offset + at), PLAN, 2, 0, DEAL)


def test_a_common_part_with_a_seed_is_refused(parts):
    with pytest.raises(MalformedMessage, match="carries a seed"):
        Half.open(flip(parts.half(1), part_size(PLAN, 2, "p1") + 70), PLAN, 2, 1)


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"\0", lambda d: b""])
def test_another_length_is_refused(parts, change):
    with pytest.raises(MalformedMessage, match="were expected"):
        Half.open(change(parts.half(0)), PLAN, 2, 0)


def test_a_half_serves_its_party_plan_batch_and_deal_only(parts):
    with pytest.raises(MalformedMessage):
        Half.open(parts.half(0), PLAN, 2, 1)
    with pytest.raises(MalformedMessage):
        Half.open(parts.half(0), PLAN, 1, 0)
    with pytest.raises(MalformedMessage, match="another plan"):
        Half.open(parts.half(0), tiny_plan(7), 2, 0)
    with pytest.raises(MalformedMessage, match="another deal"):
        Half.open(parts.half(0), PLAN, 2, 0, bytes(16))


def test_the_manifest_holds_the_digests_and_round_trips(parts):
    manifest = parts.manifest
    assert manifest.common == hashlib.sha256(parts.common).hexdigest()
    assert Manifest.parse(manifest.to_json()) == manifest


@pytest.mark.parametrize("size", [1, 77, 1 << 20])
@pytest.mark.parametrize("party", [0, 1])
def test_a_half_is_verified_in_chunks_of_any_size(parts, size, party):
    data = parts.half(party)
    if size == 1:
        data = memoryview(data)
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    parts.manifest.verify(chunks, PLAN, 2, party)


@pytest.mark.parametrize("at", [0, 3000, -1])
def test_a_damaged_half_is_noticed(parts, at):
    data = parts.half(0)
    for damaged in (flip(data, at), data[:-1], data + b"\0"):
        with pytest.raises(MalformedMessage, match="damaged"):
            parts.manifest.verify([damaged], PLAN, 2, 0)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b"\xff", b'{"p0":"00","p1":"00","common":"00"}', b'{"p0":1}', b"[" * 9999],
)
def test_a_manifest_that_does_not_parse_is_refused(data):
    with pytest.raises(MalformedMessage, match="manifest"):
        Manifest.parse(data)


def test_a_manifest_with_another_field_is_refused(parts):
    data = parts.manifest.to_json()[:-1] + b',"more":"' + b"00" * 32 + b'"}'
    with pytest.raises(MalformedMessage):
        Manifest.parse(data)


@pytest.mark.parametrize(("batch", "deal_id"), [(0, DEAL), (4097, DEAL), (1, b"short")])
def test_a_deal_of_an_absurd_batch_or_identifier_is_refused(batch, deal_id):
    with pytest.raises(InvalidInput):
        deal(PLAN, batch, seed(1), deal_id, Sinks(*(io.BytesIO() for _ in range(3))))


def test_a_cursor_reads_once():
    cursor = Cursor(np.arange(16, dtype=np.uint8))
    assert cursor.words(1).tolist() == [0x03020100]
    assert cursor.take(2).tolist() == [4, 5]


def test_the_opening_is_the_weights_less_their_masks():
    weights = weights_for(PLAN, 3)
    data = write_opening(PLAN, weights, seed(1))
    assert len(data) == opening_size(PLAN)
    for op, shape in PLAN.linear():
        opened = parse_opening(PLAN, data)[op.layer] + weight_mask(seed(1), op.layer, shape)
        np.testing.assert_array_equal(opened.view(np.int32), weights[op.layer].weight)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d[:-1],
        lambda d: d + b"\0",
        lambda d: flip(d, 0),
        lambda d: flip(d, 4),
        lambda d: flip(d, 6),
        lambda d: flip(d, 8),
    ],
)
def test_an_opening_that_does_not_parse_is_refused(change):
    data = write_opening(PLAN, weights_for(PLAN, 3), seed(1))
    with pytest.raises(MalformedMessage):
        PreparedOpening(PLAN, change(data))


@pytest.fixture
def mapped(parts, tmp_path):
    path = tmp_path / "half"
    path.write_bytes(parts.half(0))
    return Half.map(path, PLAN, 2, 0)


def test_a_map_goes_with_its_half(mapped):
    mapping = weakref.ref(mapped._mapping)
    mapped.close()
    assert mapping() is None


def test_a_held_map_stays_until_it_is_let_go(mapped):
    let_go, mapping = mapped.hold(), weakref.ref(mapped._mapping)
    mapped.close()
    assert not mapping().closed
    let_go()
    assert mapping().closed
    let_go()  # once more does no harm


def test_a_held_map_that_is_still_read_goes_with_its_reader(mapped):
    let_go, keys = mapped.hold(), mapped.keys().take(16)
    mapped.close()
    let_go()
    assert len(keys.tobytes()) == 16
