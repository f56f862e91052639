import dataclasses
import json

import pytest

from primia.errors import MalformedMessage
from primia.mpc.compile_pools import rectified
from primia.mpc.plan import (
    Add,
    Convolution,
    Dense,
    Flatten,
    MaxPool,
    Narrow,
    Plan,
    Relu,
    SumPool,
)
from tests.support.inference import Builder, resnet18


def example():
    b = Builder((3, 9, 7))
    x = b.relu(b.max_pool(b.conv(0, 6, 3, 2, 1, groups=3)))
    x = b.relu(b.add(b.conv(x, 6), x, 0, 4))
    b.head(x, 5)
    return b.plan(8, "label")


def test_json_round_trips_and_is_canonical():
    plan = example()
    again = Plan.parse(plan.to_json())
    assert again == plan
    assert again.digest() == plan.digest()
    spaced = json.dumps(json.loads(plan.to_json()), indent=1).encode()
    assert Plan.parse(spaced).digest() == plan.digest()


def test_the_digest_tells_plans_apart():
    assert len({resnet18(32).digest(), resnet18(64).digest(), resnet18(32, bits=11).digest()}) == 3
    assert resnet18(32).digest() != resnet18(32, result="label").digest()


def test_shapes_scales_and_widths():
    plan = example()
    shapes = [(3, 9, 7), (6, 5, 4), *[(6, 3, 2)] * 7]
    assert plan.shapes() == (*shapes, (6, 1, 1), (6,), (5,))
    assert plan.scales() == (8, 12, 12, 8, 8, 12, 12, 8, 8, 8, 8, 12)
    assert plan.widths() == (32, 32, 32, 28, 32, 32, 32, 28, 32, 32, 32, 32)
    assert plan.classes == 5


def test_gates_of_a_pool_never_compare_padding():
    """3 x 3, stride 2, padding 1 on 5 x 4: the first windows have two rows and two columns."""
    gates = [gate for gate in example().gates() if gate.layer == "layer1"]
    rows = 6 * 5 * 2  # per row: windows {0,1}, {1,2,3}
    columns = 6 * 2 * 3  # per column: {0,1}, {1,2,3}, {3,4}
    assert [gate.count for gate in gates] == [rows, columns]
    assert {gate.ways for gate in gates} == {3}
    assert [gate.comparisons for gate in gates] == [3 * rows, 3 * columns]


def test_gates_of_a_label_are_a_tournament():
    gates = [gate for gate in example().gates() if gate.layer == "label"]
    assert [(gate.count, gate.ways) for gate in gates] == [(2, 2), (1, 3)]  # of five classes
    assert {gate.payloads for gate in gates} == {2}


def test_the_bill_adds_up():
    plan = resnet18(224)
    bill = plan.bill(2)
    relus, pools = 1_705_984, 602_112
    assert bill.comparisons == 2 * (relus + 3 * pools) == 2 * 3_512_320
    assert bill.requests == 20
    # bits of a ReLU: v, delta of 17, m of 32, d, e; of a maximum of three: five of 17, three d, e
    bits = relus * (2 * 17 + 32 + 2) + pools * (5 * 17 + 6)
    payload = bill.request_bytes + bill.response_bytes + bill.offline_bytes
    assert payload == 2 * (bits // 8 + 4 * 3 * 224 * 224 + 4 * 3)
    # 16 bits below the sign: 9 levels of 16 bytes and a bit, a leaf of 16 bytes
    assert bill.key_bytes == pytest.approx(bill.comparisons * (9 * 16.125 + 16), rel=1e-5)


def test_gates_know_their_rings():
    narrow, relu = Narrow("cut", 0, 15, 2), Relu("a", 0, 1)
    pool = MaxPool("b", 0, (2, 2), (2, 2), (0, 0), 4)
    assert [narrow.scale(25), narrow.width(32), narrow.width(19)] == [10, 15, 2]
    (gate,) = relu.gates((8,), 17)
    assert [gate.width, gate.widen, gate.result_width] == [17, True, 32]
    assert [gate.key.domain_bits, gate.key.levels] == [15, 8]
    gate = pool.gates((1, 2, 2), 19)[0]
    assert [gate.width, gate.widen, gate.result_width, gate.key.domain_bits] == [19, False, 19, 14]
    assert not Relu("c", 0).gates((8,), 32)[0].widen


def test_a_pool_may_compare_two_values_at_a_time():
    pool = MaxPool("pool", 0, (3, 3), (2, 2), (1, 1))
    pairs = dataclasses.replace(pool, ways=2)
    counts = [[gate.comparisons for gate in p.gates((1, 8, 8), 17)] for p in (pool, pairs)]
    assert counts == [[3 * 32, 3 * 16], [32, 24, 16, 12]]


def test_a_plan_names_the_ways_of_a_pool_only_where_they_are_not_three():
    pool = MaxPool("pool", 0, (3, 3), (2, 2), (1, 1))
    head = Flatten("flat", 1), Dense("dense", 2, 3, 4)
    usual, pairs = plan(pool, *head), plan(dataclasses.replace(pool, ways=2), *head)
    assert b"ways" not in usual.to_json()
    for each in (usual, pairs):
        assert Plan.parse(each.to_json()) == each
    assert usual.digest() != pairs.digest()
    for ways, wrong in ((1, "1 values"), (3, "leaves as it is"), (4, "4 values")):
        text = pairs.to_json().replace(b'"ways":2', b'"ways":%d' % ways)
        with pytest.raises(MalformedMessage, match=wrong):
            Plan.parse(text)
    with pytest.raises(MalformedMessage, match="exactly the fields"):
        Plan.parse(pairs.to_json().replace(b'"ways":2', b'"wides":2'))


CONV = Convolution("conv", 0, 2, (3, 3), (1, 1), (1, 1), 1, 4)
CUT = Narrow("cut", 1, 4)
RELU = Relu("relu", 2)
HEAD = (Flatten("flat", 3), Dense("dense", 4, 3, 4))


def plan(*ops, shape=(1, 4, 4), bits=8, **given):
    return Plan(shape, bits, ops, **given)


def test_a_sound_plan_is_accepted():
    assert plan(CONV, CUT, RELU, *HEAD).classes == 3


@pytest.mark.parametrize(
    ("ops", "reason"),
    [
        ((), "1 to"),
        ((CONV,), "not in a vector"),
        ((CONV, CUT, Relu("relu", 5), *HEAD), "does not exist"),
        ((CONV, CUT, Relu("conv", 2), *HEAD), "Two operations"),
        ((CONV, CUT, Relu("", 2), *HEAD), "layer name"),
        ((CONV, CUT, Relu("x" * 200, 2), *HEAD), "layer name"),
        ((CONV, CUT, Relu("a b", 2), *HEAD), "layer name"),
        ((CONV, Narrow("cut", 1, 13), RELU, *HEAD), "fraction bits"),
        ((CONV, Narrow("cut", 1, 4, 27), RELU, *HEAD), "fewer than 2 of 32 bits"),
        ((CONV, CUT, Relu("relu", 2, 27), *HEAD), "fewer than 2 of 28 bits"),
        ((CONV, CUT, Relu("relu", 2, -1), *HEAD), "out of range"),
        ((CONV, CUT, SumPool("p", 2, (2, 2), (2, 2), (0, 0)), *HEAD), "narrow value"),
        ((CONV, CUT, Flatten("flat", 2), Flatten("more", 3)), "ends in a narrow"),
        ((CONV, CUT, Add("sum", 2, 2, 0, 0), *HEAD), "narrow value"),
        ((CONV, CUT, MaxPool("p", 1, (2, 2), (2, 2), (2, 2)), *HEAD), "padding"),
        ((CONV, MaxPool("p", 1, (9, 9), (2, 2), (0, 0)), *HEAD), "does not fit"),
        ((CONV, MaxPool("p", 1, (2, 2), (0, 2), (0, 0)), *HEAD), "below one"),
        ((CONV, MaxPool("p", 1, (33, 2), (1, 1), (16, 0)), *HEAD), "more than 32"),
        ((CONV, SumPool("p", 1, (999, 999), (1, 1), (999, 999)), *HEAD), "sums more"),
        ((CONV, Add("sum", 0, 1, 0, 0), *HEAD), "adds"),
        ((CONV, Add("sum", 1, 1, 1, 0), *HEAD), "scales"),
        ((CONV, Add("sum", 1, 1, 31, 31), *HEAD), "out of range"),
        ((CONV, Dense("dense", 1, 3, 4)), "takes a vector"),
        ((Convolution("c", 0, 3, (3, 3), (1, 1), (1, 1), 2, 4), *HEAD), "groups"),
        ((Convolution("c", 0, 0, (3, 3), (1, 1), (1, 1), 1, 4), *HEAD), "no outputs"),
        ((Convolution("c", 0, 2, (3, 3), (1, 1), (1, 1), 0, 4), *HEAD), "groups"),
        ((Convolution("c", 0, 2, (-3, 3), (1, 1), (1, 1), 1, 4), *HEAD), "out of range"),
        ((Convolution("c", 0, 1 << 20, (3, 3), (1, 1), (2, 2), 1, 4), *HEAD), "out of range"),
        ((Convolution("c", 0, 1, (1, 1), (1, 1), (9999, 9999), 1, 4), *HEAD), "out of range"),
        ((Flatten("flat", 0), Dense("a", 1, 4, 4), Dense("b", 2, 3, 4)), "without a ReLU"),
        (
            (CONV, MaxPool("p", 1, (2, 2), (2, 2), (0, 0)), Flatten("f", 2), Dense("d", 3, 3, 4)),
            "without a ReLU",
        ),
    ],
)
def test_plans_that_do_not_hold_together_are_refused(ops, reason):
    with pytest.raises(MalformedMessage, match=reason):
        plan(*ops)


@pytest.mark.parametrize(
    "given",
    [
        {"shape": (1, 4)},
        {"shape": (0, 4, 4)},
        {"shape": (1, 1 << 14, 1 << 14)},
        {"shape": (1, 1, 1 << 13)},
        {"bits": 0},
        {"bits": 31},
        {"result": "image"},
        {"version": 2},
        {"ring_bits": 64},
    ],
)
def test_other_headers_are_refused(given):
    with pytest.raises(MalformedMessage):
        plan(CONV, CUT, RELU, *HEAD, **given)


def test_a_label_of_one_class_is_refused():
    with pytest.raises(MalformedMessage, match="two classes"):
        plan(Flatten("flat", 0), Dense("dense", 1, 1, 4), result="label")


def document(change):
    found = json.loads(example().to_json())
    change(found)
    return json.dumps(found).encode()


BAD = {
    "unknown field": lambda d: d.update(more=1),
    "missing field": lambda d: d.pop("result"),
    "unknown op": lambda d: d["ops"][0].update(op="softmax"),
    "op without kind": lambda d: d["ops"][0].pop("op"),
    "op not a dict": lambda d: d["ops"].insert(0, 3),
    "op kind a list": lambda d: d["ops"][0].update(op=[]),
    "op with a field more": lambda d: d["ops"][0].update(bias=1),
    "op with a field less": lambda d: d["ops"][0].pop("groups"),
    "text for a number": lambda d: d["ops"][0].update(groups="1"),
    "bool for a number": lambda d: d["ops"][0].update(groups=True),
    "float for a number": lambda d: d["ops"][0].update(groups=1.0),
    "number for a text": lambda d: d["ops"][0].update(layer=1),
    "pair of three": lambda d: d["ops"][0].update(kernel=[1, 1, 1]),
    "pair of texts": lambda d: d["ops"][0].update(kernel=["1", "1"]),
    "number for a pair": lambda d: d["ops"][0].update(kernel=3),
    "ops not a list": lambda d: d.update(ops={}),
    "too many ops": lambda d: d.update(ops=d["ops"] * 1000),
    "shape not a list": lambda d: d.update(input_shape="abc"),
    "huge number": lambda d: d.update(activation_bits=10**30),
    "huge source": lambda d: d["ops"][0].update(source=1 << 19),
    "negative source": lambda d: d["ops"][0].update(source=-1),
    "version as text": lambda d: d.update(version="1"),
    "result as number": lambda d: d.update(result=1),
}


@pytest.mark.parametrize("fault", BAD)
def test_json_that_is_not_a_plan_is_refused(fault):
    with pytest.raises(MalformedMessage):
        Plan.parse(document(BAD[fault]))


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b"NaN"])
def test_bytes_that_are_not_json_are_refused(data):
    with pytest.raises(MalformedMessage):
        Plan.parse(data)


def test_a_plan_over_the_size_limit_is_refused():
    with pytest.raises(MalformedMessage, match="over the limit"):
        Plan.parse(b" " * (1 << 20) + example().to_json())


def test_a_pool_that_takes_a_relu():
    """Its last gate has a way more and widens; no window's candidate is left out of it."""
    pool = MaxPool("pool", 0, (3, 3), (2, 2), (1, 1), relu=True)
    across, down = pool.gates((1, 8, 8), 17)
    assert (across.ways, across.widen, down.ways, down.widen) == (3, False, 4, True)
    assert (down.lanes, down.bits, down.count, pool.width(17)) == (3, 6, 16, 32)
    flat = dataclasses.replace(pool, kernel=(1, 3), stride=(1, 2), padding=(0, 1))
    assert [gate.ways for gate in flat.gates((1, 8, 8), 17)] == [4]
    pairs = dataclasses.replace(pool, kernel=(2, 2), padding=(0, 0))
    assert [gate.ways for gate in pairs.gates((1, 8, 8), 17)] == [2, 3]


def test_a_pool_takes_a_relu_only_where_a_gate_can():
    pool = MaxPool("pool", 0, (1, 1), (1, 1), (0, 0), relu=True)
    with pytest.raises(ValueError, match="no ReLU"):
        pool.gates((1, 8, 8), 17)
    coarse = MaxPool("pool", 0, (3, 3), (2, 2), (1, 1), 4, relu=True)
    with pytest.raises(ValueError, match="no ReLU"):
        coarse.gates((1, 8, 8), 17)
    assert dataclasses.replace(coarse, ways=2).gates((1, 8, 8), 17)[-1].ways == 3


def test_a_plan_says_of_a_pool_whether_it_takes_a_relu():
    pool = MaxPool("pool", 0, (3, 3), (2, 2), (1, 1), relu=True)
    found = plan(pool, Flatten("flat", 1), Dense("dense", 2, 3, 4))
    text = found.to_json()
    assert Plan.parse(text) == found
    for wrong, why in ((b"false", "leaves as it is"), (b"1", "neither true nor false")):
        with pytest.raises(MalformedMessage, match=why):
            Plan.parse(text.replace(b'"relu":true', b'"relu":' + wrong))


def test_a_relu_joins_the_pool_that_it_alone_reads():
    """Values behind it are numbered anew; one that is read elsewhere too, or coarse, stays."""
    pool, relu = MaxPool("pool", 0, (2, 2), (2, 2), (0, 0)), Relu("relu", 1)
    behind = Add("add", 2, 2, 0, 0), Flatten("flat", 3), Dense("dense", 4, 3, 4)
    joined = rectified(plan(pool, relu, *behind))
    assert joined.ops[0] == dataclasses.replace(pool, relu=True)
    assert [op.sources for op in joined.ops[1:]] == [(1, 1), (2,), (3,)]
    assert rectified(joined) == joined
    read_twice = plan(pool, relu, Add("add", 1, 2, 0, 0), *behind[1:])
    coarse = plan(pool, Relu("relu", 1, 3), *behind)
    no_gate = plan(dataclasses.replace(pool, kernel=(1, 1)), relu, *behind)
    for given in (read_twice, coarse, no_gate):
        assert rectified(given) == given
