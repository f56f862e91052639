"""What nodes may send wrongly: refused with its name, and a right answer is still taken."""

from __future__ import annotations

import numpy as np
import pytest

from primia.aggregation.terms import RoundId
from primia.aggregation.wire import HEADER_BYTES, Header, Kind, frame
from primia.chassis.identity import decode_key, encode_key
from tests.services.model_owner.federation import BINARY, NODES, Federation, Node, exact_mean

PLAIN = {"aggregation": {"secure": False}}
SECURE = {"aggregation": {"secure": True, "threshold": 2}}


def at(federation: Federation, kind: str, mode: dict) -> str:
    federation.with_model()
    run = federation.start(**mode)
    if mode is PLAIN and kind == "upload":
        federation.until("train")
        federation.turn()
    else:
        federation.until(kind)
    return run


def send(federation: Federation, path, body=None, content=None, who="node-a"):
    return federation.nodes[who].put(path, body, content)


def prepared(federation: Federation, who="node-a"):
    node = federation.nodes[who]
    return node.answer(node.ask())


def assert_problem(answer, status: int, code: str, *words: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == f"urn:primia:problem:{code}"
    for word in words:
        assert word in problem["detail"], problem["detail"]


def assert_still_taken(federation: Federation, path, body=None, content=None) -> None:
    assert send(federation, path, body, content).status_code == 204
    federation.run_out()


def test_an_update_with_nan_is_named_and_a_right_one_is_taken(federation):
    run = at(federation, "upload", PLAIN)
    path, _, content = prepared(federation)
    broken = bytearray(content)
    broken[HEADER_BYTES + 4 * 7 : HEADER_BYTES + 4 * 8] = np.float32(np.nan).tobytes()
    answer = send(federation, path, content=bytes(broken))
    assert_problem(answer, 422, "invalid-update", "NaN", "index 7")
    assert answer.json()["index"] == 7
    assert not list((federation.ctx.files.root / "runs" / run / "1").iterdir())
    assert_still_taken(federation, path, content=content)
    assert federation.show(run)["state"] == "finished"


@pytest.mark.parametrize("index", [5, -1])  # of the parameters, of the buffers
def test_one_huge_update_costs_its_own_place_alone(federation, index):
    run = at(federation, "upload", PLAIN)
    path, _, content = prepared(federation, "node-c")
    vector = np.frombuffer(content[HEADER_BYTES:], "<f4").copy()
    vector[index] = 3e38
    huge = b"".join(frame(header_of(federation, run), vector))
    answer = send(federation, path, content=huge, who="node-c")
    assert_problem(answer, 422, "invalid-update", "norm of 3e+38")
    before = federation.present_weights(run)
    federation.turn("node-a", "node-b")
    federation.forward()
    federation.run_out()
    shown = federation.show(run)
    assert shown["state"] == "finished"
    stages = [site["stage"] for site in shown["reports"][0]["sites"]]
    assert stages == ["absorbed", "absorbed", "trained"]
    expected = before + exact_mean(federation, 1, ("node-a", "node-b"))
    assert np.allclose(federation.version_weights(2), expected, atol=1e-7)


def test_an_update_above_the_stated_norm_is_refused(federation):
    mode = {"aggregation": {"secure": False, "max_norm": 0.5}}
    federation.with_model()
    run = federation.start(**mode)
    federation.until("train")
    federation.turn()
    path, _, content = prepared(federation)
    answer = send(federation, path, content=content)
    assert_problem(answer, 422, "invalid-update", "bound is 0.5")
    small = np.frombuffer(content[HEADER_BYTES:], "<f4") / np.float32(100)
    right = b"".join(frame(header_of(federation, run), small))
    assert send(federation, path, content=right).status_code == 204


@pytest.mark.parametrize("index", [5, -1])
def test_nobody_makes_a_secure_round_coarse_by_a_large_exponent(federation, index):
    class Poisoner(Node):
        def change(self, number: int) -> np.ndarray:
            change = super().change(number).copy()
            change[index] = 2.0**39
            return change

    federation.nodes["node-c"] = Poisoner(federation, federation.cast.identities["node-c"])
    run = at(federation, "train", SECURE)
    path, body, _ = prepared(federation, "node-c")
    assert 40 in body["exponents"].values()
    answer = send(federation, path, body, who="node-c")
    assert_problem(answer, 422, "invalid-update", "The exponent 40", "beyond the run's bound")
    federation.turn("node-a", "node-b")
    federation.forward()
    federation.run_out()
    shown = federation.show(run)
    assert shown["state"] == "finished"
    exact = exact_mean(federation, 1, ("node-a", "node-b"))
    found = federation.version_weights(2) - federation.version_weights(1)
    assert np.abs(found - exact).max() < 1e-6  # a step of 2^9 with the exponent


WRONG_BODIES = [
    (lambda content: content[:-4], 400, "malformed-message", "are expected"),
    (lambda content: content + b"0000", 413, "too-large", "larger than"),
    (lambda content: b"PGX1" + content[4:], 400, "malformed-message", "first bytes"),
    (lambda content: content[:10], 400, "malformed-message", "are expected"),
    (lambda _: b"", 400, "malformed-message", "are expected"),
]


def test_an_update_of_the_wrong_size_or_form(federation):
    at(federation, "upload", PLAIN)
    path, _, content = prepared(federation)
    for cut, status, code, word in WRONG_BODIES:
        assert_problem(send(federation, path, content=cut(content)), status, code, word)
    assert_still_taken(federation, path, content=content)


def test_a_chunked_update_is_bounded_by_what_it_can_have(federation):
    at(federation, "upload", PLAIN)
    path, _, content = prepared(federation)

    def pieces(data):
        yield from (data[at : at + 1000] for at in range(0, len(data), 1000))

    node = federation.nodes["node-a"]
    long = node.call("PUT", path, content=pieces(content + bytes(5000)), headers=BINARY)
    assert_problem(long, 413, "too-large", "larger than")
    short = node.call("PUT", path, content=pieces(content[:-1000]), headers=BINARY)
    assert_problem(short, 400, "malformed-message", "are expected")
    nothing = node.call("PUT", path, content=pieces(b""), headers=BINARY)
    assert_problem(nothing, 422, "invalid-input", "empty")
    assert node.call("PUT", path, content=pieces(content), headers=BINARY).status_code == 204


def header_of(federation: Federation, run: str, **changes) -> Header:
    values = {
        "kind": Kind.PLAIN,
        "round_id": RoundId(bytes.fromhex(run), 1),
        "count": federation.layout.size,
        **changes,
    }
    return Header(**values)


WRONG_HEADERS = [
    ({"kind": Kind.MASKED}, "kind is masked; plain"),
    ({"round_id": RoundId(bytes(16), 1)}, "run is 0000"),
    ({"count": 3}, "number of values is 3;"),
]


def test_an_update_that_announces_something_else(federation):
    run = at(federation, "upload", PLAIN)
    path, _, content = prepared(federation)
    for changes, word in WRONG_HEADERS:
        other = header_of(federation, run, **changes).to_bytes() + content[HEADER_BYTES:]
        assert_problem(send(federation, path, content=other), 409, "unexpected-message", word)
    assert_still_taken(federation, path, content=content)


def test_the_same_answer_again_is_accepted_and_another_one_is_not(federation):
    run = at(federation, "train", PLAIN)
    path, body, _ = prepared(federation)
    assert send(federation, path, body).status_code == 204
    assert send(federation, path, body).status_code == 204
    other = send(federation, path, {**body, "loss": 9.0})
    assert_problem(other, 409, "unexpected-message", "Another answer to train")
    federation.turn("node-b", "node-c")
    path, _, content = prepared(federation)
    assert send(federation, path, content=content).status_code == 204
    federation.work()
    assert send(federation, path, content=content).status_code == 204
    vector = np.frombuffer(content[HEADER_BYTES:], "<f4") + np.float32(0.5)
    changed = b"".join(frame(header_of(federation, run), vector))
    assert_problem(send(federation, path, content=changed), 409, "unexpected-message", "Another")
    assert len(list((federation.ctx.files.root / "runs" / run / "1").iterdir())) == 1


def test_a_step_out_of_order_is_refused_and_names_what_is_awaited(federation):
    run = at(federation, "train", SECURE)
    early = send(federation, f"/rounds/{run}/1/envelopes", {"envelopes": {}})
    assert_problem(early, 409, "unexpected-message", "waits for train from node-a", "share_keys")
    upload = send(federation, f"/rounds/{run}/1/update", content=bytes(40))
    assert_problem(upload, 409, "unexpected-message", "waits for train")
    later = send(federation, f"/rounds/{run}/2/report", prepared(federation)[1])
    assert_problem(later, 409, "unexpected-message", "Round 2")
    evaluation = {"scores": {"samples": 1}}
    early = send(federation, f"/rounds/{run}/evaluation", evaluation)
    assert_problem(early, 409, "unexpected-message", "waits for train")
    early = send(federation, f"/rounds/{run}/acknowledgement")
    assert_problem(early, 409, "unexpected-message", "not for an answer to stop")


def test_a_late_answer_is_refused_and_the_node_asks_again(federation):
    at(federation, "upload", SECURE)
    path, _, content = prepared(federation, "node-c")
    federation.turn("node-a", "node-b")
    federation.forward()
    late = send(federation, path, content=content, who="node-c")
    assert_problem(late, 409, "unexpected-message", "waits for nothing from node-c")
    assert "Ask for work again" in late.json()["hint"]


FALSE_ADVERTISEMENTS = [
    (lambda ad: ad[:-1] + bytes([ad[-1] ^ 1]), 403, "invalid-signature"),
    (lambda ad: ad[:9] + bytes([ad[9] ^ 1]) + ad[10:], 409, "inconsistent-round"),
    (lambda ad: ad[:-3], 400, "malformed-message"),
    (lambda _: b"", 400, "malformed-message"),
]


def test_a_false_advertisement_is_refused(federation):
    run = at(federation, "train", SECURE)
    path, body, _ = prepared(federation)
    for change, status, code in FALSE_ADVERTISEMENTS:
        false = encode_key(change(decode_key(body["advertisement"])))
        answer = send(federation, path, {**body, "advertisement": false})
        assert_problem(answer, status, code)
    assert_still_taken(federation, path, body)
    assert federation.show(run)["state"] == "finished"


CONTRADICTIONS = [
    {"samples": 11},
    {"exponents": {"parameters": 0, "buffers": 0}},
    {"exponents": {}},
    {"advertisement": None},
]


def test_a_report_that_contradicts_its_advertisement_is_refused(federation):
    at(federation, "train", SECURE)
    path, body, _ = prepared(federation)
    for change in CONTRADICTIONS:
        assert_problem(
            send(federation, path, {**body, **change}), 422, "invalid-input", "advertise"
        )


WRONG_FIELDS = [
    {"loss": "low"},
    {"samples": 0},
    {"accuracy": 1.5},
    {"surprise": 1},
    {"seconds": -1},
]


def test_a_report_that_is_none_is_refused_by_field(federation):
    at(federation, "train", PLAIN)
    path, body, _ = prepared(federation)
    for change in WRONG_FIELDS:
        assert_problem(send(federation, path, {**body, **change}), 422, "invalid-input", *change)


def test_a_plain_report_takes_no_keys(federation):
    at(federation, "train", PLAIN)
    path, body, _ = prepared(federation)
    answer = send(federation, path, {**body, "exponents": {"parameters": 1, "buffers": 1}})
    assert_problem(answer, 422, "invalid-input", "no exponents")


def test_envelopes_for_anything_but_the_roster_are_refused(federation):
    at(federation, "share_keys", SECURE)
    path, body, _ = prepared(federation)
    sealed = body["envelopes"]
    missing = {name: sealed[name] for name in NODES[:2]}
    answer = send(federation, path, {"envelopes": missing})
    assert_problem(answer, 409, "inconsistent-round", "node-a")
    cut = {**sealed, "node-b": sealed["node-b"][:-8]}
    assert_problem(send(federation, path, {"envelopes": cut}), 400, "malformed-message")
    assert_still_taken(federation, path, body)


def test_a_false_confirmation_is_refused(federation):
    at(federation, "confirm", SECURE)
    path, body, _ = prepared(federation)
    stolen = prepared(federation, "node-b")[1]
    assert_problem(send(federation, path, stolen), 403, "invalid-signature", "node-a")
    assert_still_taken(federation, path, body)


def test_false_shares_are_refused_and_the_sum_still_opens(federation):
    run = at(federation, "unmask", SECURE)
    path, body, _ = prepared(federation)
    stolen = prepared(federation, "node-b")[1]
    assert_problem(send(federation, path, stolen), 409, "inconsistent-round", "node-a")
    assert_still_taken(federation, path, body)
    assert federation.show(run)["state"] == "finished"


def test_no_disk_space_is_said_before_the_upload_starts(federation):
    run = at(federation, "upload", PLAIN)
    path, _, content = prepared(federation)
    files = federation.ctx.files
    reserve, files._min_free = files._min_free, 1 << 60
    answer = send(federation, path, content=content)
    assert_problem(answer, 507, "storage-full", "are needed")
    files._min_free = reserve
    assert_still_taken(federation, path, content=content)
    assert federation.show(run)["state"] == "finished"


def test_nobody_answers_in_anothers_place(federation):
    federation.with_model()
    run = federation.start(nodes=["node-a", "node-b"], **PLAIN)
    decision = {"accepted": True, "samples": 1, "classes": ["normal", "pneumonia"]}
    stranger = send(federation, f"/rounds/{run}/decision", decision, who="node-c")
    assert_problem(stranger, 404, "not-found", "node-c takes part in no run")
    user = federation.call("alice", "PUT", f"/rounds/{run}/decision", json=decision)
    assert_problem(user, 403, "forbidden", "data_node")
    mallory = federation.call("mallory", "PUT", f"/rounds/{run}/decision", json=decision)
    assert_problem(mallory, 401, "unauthenticated")
    unknown = send(federation, f"/rounds/{'0' * 32}/decision", decision)
    assert_problem(unknown, 404, "not-found", "0" * 32)


def test_weights_are_for_those_who_are_asked_to_use_them(federation):
    run = at(federation, "train", PLAIN)
    url = f"/rounds/{run}/1/weights"
    assert federation.nodes["node-a"].call("GET", url).status_code == 200
    part = federation.nodes["node-a"].call("GET", url, headers={"Range": "bytes=100-"})
    assert part.status_code == 206
    other = federation.nodes["node-a"].call("GET", f"/rounds/{run}/2/weights")
    assert_problem(other, 409, "unexpected-message", "round 2")
    assert federation.call("alice", "GET", url).status_code == 403
    federation.turn("node-a")
    answer = federation.nodes["node-a"].call("GET", url)
    assert_problem(answer, 409, "unexpected-message", "not asked")


OF_THE_USERS = ["/models", "/rounds", "/nodes", "/models/chest/versions/1/weights"]


def test_a_data_node_reads_nothing_that_is_the_users(federation):
    federation.with_model()
    for path in OF_THE_USERS:
        assert_problem(federation.call("node-a", "GET", path), 403, "forbidden")
