"""The two state machines: order, repetition, refusal, strict frames."""

import weakref

import numpy as np
import pytest

from primia.errors import InvalidInput, MalformedMessage, UnexpectedMessage
from primia.mpc.frames import HEADER_BYTES, Kind, frame, unpack
from primia.mpc.material import Half
from primia.mpc.party import Client, Owner, PreparedModel, PreparedOpening
from primia.mpc.weights import LayerWeights
from tests.support.inference import DEAL, SESSION, Builder, Session, seed, weights_for


def tiny_plan(result="scores"):
    """Two gates, the first of a count that is no multiple of 8."""
    b = Builder((1, 5, 5))
    b.head(b.max_pool(b.relu(b.conv(0, 1)), 2, 5, 0), 3)
    return b.plan(6, result)


def tiny(**given):
    plan = tiny_plan()
    session = Session(plan, weights_for(plan, 1), **given)
    session.prepare()
    return session


IMAGE = np.linspace(-1, 1, 25, dtype=np.float32).reshape(1, 1, 5, 5)


def test_a_repeated_step_gets_the_stored_answer():
    s = tiny()
    assert s.owner.offline(s.offline) == s.accepted
    request = s.client.first(IMAGE)
    for number in range(s.plan.requests):
        answer = s.owner.step(number, request)
        assert s.owner.step(number, bytes(request)) == answer
        request = s.client.step(answer)
    assert request is None
    assert s.owner.done
    np.testing.assert_array_equal(s.client.result(), tiny_result())


def tiny_result():
    plan = tiny_plan()
    return Session(plan, weights_for(plan, 1)).run(IMAGE)


def test_another_body_for_a_done_step_is_refused_and_changes_nothing():
    s = tiny()
    request = s.client.first(IMAGE)
    answer = s.owner.step(0, request)
    other = bytearray(request)
    other[-1] ^= 1
    with pytest.raises(UnexpectedMessage, match="another body"):
        s.owner.step(0, bytes(other))
    assert s.owner.step(0, request) == answer
    s.owner.step(1, s.client.step(answer))


def test_another_offline_body_is_refused():
    s = tiny()
    other = bytearray(s.offline)
    other[-1] ^= 1
    with pytest.raises(UnexpectedMessage, match="another body"):
        s.owner.offline(bytes(other))


@pytest.mark.parametrize("number", [1, 3, 4, 100, -1])
def test_a_later_step_is_out_of_order(number):
    s = tiny()
    request = s.client.first(IMAGE)
    with pytest.raises(UnexpectedMessage, match="out of order"):
        s.owner.step(number, request)
    assert s.owner.step(0, request)


def test_an_earlier_step_is_out_of_order():
    s = tiny()
    request = s.client.first(IMAGE)
    answer = s.owner.step(0, request)
    s.owner.step(1, s.client.step(answer))
    with pytest.raises(UnexpectedMessage, match="out of order"):
        s.owner.step(0, request)
    with pytest.raises(UnexpectedMessage, match="out of order"):
        s.owner.offline(s.offline)


def test_a_step_before_the_offline_message_is_out_of_order():
    plan = tiny_plan()
    s = Session(plan, weights_for(plan, 1))
    s.client.offline()
    with pytest.raises(UnexpectedMessage, match="offline is next"):
        s.owner.step(0, s.client.first(IMAGE))


def test_a_step_after_the_last_is_refused():
    s = tiny()
    request = s.client.first(IMAGE)
    number = 0
    while request is not None:
        number, last = s.client.request_number, request
        request = s.client.step(s.owner.step(number, request))
    with pytest.raises(UnexpectedMessage, match="out of order"):
        s.owner.step(number + 1, last)


def change(data, at, value=0xFF):
    changed = bytearray(data)
    changed[at] ^= value
    return bytes(changed)


MALFORMED = {
    "empty": lambda body: b"",
    "cut header": lambda body: body[:20],
    "cut payload": lambda body: body[:-1],
    "leftovers": lambda body: body + b"\0",
    "magic": lambda body: change(body, 0),
    "version": lambda body: change(body, 4),
    "kind": lambda body: change(body, 6),
    "length": lambda body: change(body, 28),
    "long length": lambda body: change(body, 35),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_frame_leaves_the_session_as_it_was(fault):
    s = tiny()
    request = s.client.first(IMAGE)
    for number in range(s.plan.requests):
        with pytest.raises(MalformedMessage):
            s.owner.step(number, MALFORMED[fault](request))
        answer = s.owner.step(number, request)
        with pytest.raises(MalformedMessage):
            s.client.step(MALFORMED[fault](answer))
        request = s.client.step(answer)
    np.testing.assert_array_equal(s.client.result(), tiny_result())


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_offline_frame_leaves_the_session_as_it_was(fault):
    plan = tiny_plan()
    s = Session(plan, weights_for(plan, 1))
    body = s.client.offline()
    with pytest.raises(MalformedMessage):
        s.owner.offline(MALFORMED[fault](body))
    assert s.owner.offline(body)


@pytest.mark.parametrize("at", [8, 24])
def test_a_frame_of_another_session_or_step_is_unexpected(at):
    s = tiny()
    with pytest.raises(UnexpectedMessage, match=r"session|step"):
        s.owner.step(0, change(s.client.first(IMAGE), at))


@pytest.mark.parametrize("at", [HEADER_BYTES, HEADER_BYTES + 32])
def test_an_offline_frame_of_another_plan_or_deal_is_refused(at):
    plan = tiny_plan()
    s = Session(plan, weights_for(plan, 1))
    with pytest.raises(MalformedMessage, match=r"another|other"):
        s.owner.offline(change(s.client.offline(), at))


def test_unused_bits_that_are_set_are_refused():
    s = tiny()
    answer = s.owner.step(0, s.client.first(IMAGE))
    with pytest.raises(MalformedMessage, match="unused"):
        s.client.step(change(answer, -1, 0x80))
    request = s.client.step(answer)
    with pytest.raises(MalformedMessage, match="unused"):
        s.owner.step(1, change(request, -1, 0x80))
    assert s.owner.step(1, request)


def test_bits_of_another_size_are_refused():
    with pytest.raises(MalformedMessage, match="size"):
        unpack(memoryview(b"\0\0"), 8)


def test_a_closed_session_answers_nothing_and_forgets():
    s = tiny()
    request = s.client.first(IMAGE)
    s.owner.step(0, request)
    s.owner.close()
    s.owner.close()
    s.client.close()
    with pytest.raises(UnexpectedMessage, match="closed"):
        s.owner.step(0, request)
    with pytest.raises(UnexpectedMessage, match="closed"):
        s.owner.offline(s.offline)
    with pytest.raises(UnexpectedMessage, match="closed"):
        s.client.step(b"")


class FailingEvaluator:
    def evaluate(self, shape, party, x, roots, key):
        raise MemoryError


@pytest.mark.parametrize("party", [0, 1])
def test_a_session_that_is_done_lets_go_of_its_mapped_half(party, tmp_path):
    """Else the worker that serves it would keep half a gigabyte until it closes the session."""
    plan = tiny_plan()
    s = Session(plan, weights_for(plan, 1))
    path = tmp_path / "half"
    path.write_bytes(s.deal.half(party))
    mapped = np.memmap(path, np.uint8, mode="r")
    held = weakref.ref(mapped)
    half = Half.open(mapped, s.plan, 1, party, DEAL)
    del mapped
    if party == 0:
        s.owner = Owner(PreparedModel(s.plan, s.weights), half, SESSION)
    else:
        s.client = Client(PreparedOpening(s.plan, s.opening), half, SESSION)
    s.run(IMAGE)
    assert held() is None
    assert s.owner.done
    assert len(s.client.result()) == 1


def test_a_session_that_breaks_is_closed_with_its_half():
    s = tiny()
    halves = [Half.open(s.deal.half(i), s.plan, 1, i) for i in (0, 1)]
    owner = Owner(PreparedModel(s.plan, s.weights), halves[0], SESSION, FailingEvaluator())
    client = Client(PreparedOpening(s.plan, s.opening), halves[1], SESSION, FailingEvaluator())
    owner.offline(client.offline())
    request = client.first(IMAGE)
    with pytest.raises(MemoryError):
        owner.step(0, request)
    with pytest.raises(UnexpectedMessage, match="closed"):
        owner.step(0, request)
    with pytest.raises(MalformedMessage, match="closed"):
        halves[0].keys()
    with pytest.raises(MemoryError):
        client.step(s.owner.step(0, request))
    with pytest.raises(UnexpectedMessage, match="closed"):
        client.step(b"")


def test_the_client_keeps_its_order():
    plan = tiny_plan()
    s = Session(plan, weights_for(plan, 1))
    with pytest.raises(UnexpectedMessage, match="offline message comes first"):
        s.client.first(IMAGE)
    with pytest.raises(UnexpectedMessage, match="No request"):
        s.client.step(b"")
    with pytest.raises(UnexpectedMessage, match="no result"):
        s.client.result()
    s.client.offline()
    with pytest.raises(UnexpectedMessage, match="made before"):
        s.client.offline()
    s.client.first(IMAGE)
    with pytest.raises(UnexpectedMessage, match="has its image"):
        s.client.first(IMAGE)


def test_the_client_refuses_a_response_after_the_result():
    plan = tiny_plan()
    s = Session(plan, weights_for(plan, 1))
    s.run(IMAGE)
    with pytest.raises(UnexpectedMessage, match="has its result"):
        s.client.step(s.responses[-1])


@pytest.mark.parametrize(
    "image",
    [IMAGE[0], IMAGE[:, :, :4], np.full_like(IMAGE, np.nan), np.full_like(IMAGE, 2.0**24)],
)
def test_an_image_of_another_shape_or_out_of_range_is_refused(image):
    s = tiny()
    with pytest.raises(InvalidInput):
        s.client.first(image)
    assert s.client.first(IMAGE), "the session still waits for its image"


def test_a_label_that_the_model_does_not_have_is_refused():
    plan = tiny_plan("label")
    s = Session(plan, weights_for(plan, 1))
    s.prepare()
    request = s.client.first(IMAGE)
    for number in range(plan.requests):
        answer = s.owner.step(number, request)
        if number == plan.requests - 1:
            with pytest.raises(MalformedMessage, match="not a label"):
                s.client.step(change(answer, HEADER_BYTES + 2, 0x55))
        request = s.client.step(answer)
    assert s.client.result()[0] < 3


def test_halves_of_the_wrong_party_are_refused():
    s = tiny()
    halves = [Half.open(s.deal.half(i), s.plan, 1, i) for i in (0, 1)]
    with pytest.raises(InvalidInput, match="P0's"):
        Owner(PreparedModel(s.plan, s.weights), halves[1], SESSION)
    with pytest.raises(InvalidInput, match="P1's"):
        Client(PreparedOpening(s.plan, s.opening), halves[0], SESSION)
    with pytest.raises(InvalidInput, match="identifier"):
        Owner(PreparedModel(s.plan, s.weights), halves[0], b"short")


def test_sessions_share_a_prepared_model():
    plan = tiny_plan()
    weights = weights_for(plan, 1)
    model = PreparedModel(plan, weights)
    results = []
    for root in (5, 6):
        s = Session(plan, weights, root=root)
        s.owner = Owner(model, Half.open(s.deal.half(0), plan, 1, 0, DEAL), SESSION)
        results.append(s.run(IMAGE))
    assert np.abs(results[0] - results[1]).max() < 2.0**-2  # their truncations differ by a unit


def test_weights_that_are_not_the_plans_are_refused():
    plan = tiny_plan()
    weights = weights_for(plan, 1)
    name = plan.ops[0].layer
    given = weights[name]
    bad = {
        "shape": LayerWeights(given.weight[:, :, :2], given.bias),
        "bias": LayerWeights(given.weight, given.bias[:0]),
        "int32": LayerWeights(given.weight.astype(np.int64), given.bias),
    }
    for layer in bad.values():
        with pytest.raises(InvalidInput, match=name):
            PreparedModel(plan, {**weights, name: layer})
    with pytest.raises(InvalidInput, match="not those"):
        PreparedModel(plan, {**weights, "other": given})


def test_nothing_secret_is_printed():
    s = tiny()
    half = Half.open(s.deal.half(0), s.plan, 1, 0)
    shown = [repr(x) for x in (s.owner, s.client, half, PreparedModel(s.plan, s.weights))]
    shown.append(repr(next(iter(s.weights.values()))))
    assert shown == [
        "Owner(<session, next 0>)",
        "Client(<session, request -1>)",
        "Half(<secret of party 0>)",
        "PreparedModel(<secret>)",
        "LayerWeights(<secret (1, 1, 3, 3)>)",
    ]
    assert repr(seed(1)) == "Seed(<16 secret bytes>)"


def test_frames_hold_what_their_header_says():
    body = frame(Kind.REQUEST, SESSION, 7, [b"ab", b"cd"])
    assert len(body) == HEADER_BYTES + 4
    assert body[-4:] == b"abcd"


@pytest.mark.parametrize("result", ["scores", "label"])
def test_a_client_goes_on_behind_an_offline_message_made_before(result):
    """Of the same half and session: the same message, and the same result."""
    plan = tiny_plan(result)
    plain, ahead = (Session(plan, weights_for(plan, 1)) for _ in range(2))
    expected = plain.run(IMAGE)
    body, share = ahead.client.offline(), ahead.client.share()
    assert body == plain.offline
    half = Half.open(ahead.deal.half(1), ahead.plan, 1, 1, DEAL)
    later = Client(PreparedOpening(ahead.plan, ahead.opening), half, SESSION)
    with pytest.raises(UnexpectedMessage):
        later.first(IMAGE)
    with pytest.raises(UnexpectedMessage):
        later.share()
    for wrong in (b"", share[:-4], share + bytes(4)):
        with pytest.raises(MalformedMessage):
            later.restore(wrong)
    later.restore(share)
    with pytest.raises(UnexpectedMessage):
        later.offline()
    with pytest.raises(UnexpectedMessage):
        later.restore(share)
    ahead.owner.offline(body)
    request = later.first(IMAGE)
    while request is not None:
        request = later.step(ahead.owner.step(later.request_number, request))
    np.testing.assert_array_equal(later.result(), expected)
