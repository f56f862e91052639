"""Frozen messages of a whole session, and bad ones that must be refused as they are today.

`python -m tests.primia.mpc.test_vectors` writes them anew, when the version changes.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from primia import errors
from primia.errors import PrimiaError
from primia.mpc.material import Half
from primia.mpc.opening import parse_opening
from primia.mpc.party import Client, Owner, PreparedModel, PreparedOpening
from primia.mpc.plan import Plan
from tests.support.inference import DEAL, SESSION, Builder, Session, weights_for

VECTORS = Path(__file__).parent / "vectors"
IMAGE = np.linspace(-1, 1, 2 * 16, dtype=np.float64).reshape(2, 1, 4, 4)


def fresh():
    b = Builder((1, 4, 4))
    b.head(b.relu(b.max_pool(b.conv(0, 1), 3, 2, 1, low=2), 2), 5)
    plan = b.plan(6, "label")  # five labels: maxima of two, then of three
    return Session(plan, weights_for(plan, 11), 2)


def messages(session):
    """Everything that is sent or dealt, by name."""
    labels = session.run(IMAGE)
    found = {
        "plan.json": session.plan.to_json(),
        "opening.bin": session.opening,
        "p0.bin": session.deal.p0,
        "p1.bin": session.deal.p1,
        "common.bin": session.deal.common,
        "manifest.json": session.deal.manifest.to_json(),
        "offline.bin": session.offline,
        "labels.json": json.dumps(labels.tolist()).encode(),
    }
    for i, (request, response) in enumerate(zip(session.requests, session.responses, strict=True)):
        found[f"request{i}.bin"] = request
        found[f"response{i}.bin"] = response
    return found


def frozen(name):
    return (VECTORS / name).read_bytes()


def test_dealing_and_both_parties_are_as_frozen():
    found = messages(fresh())
    assert {path.name for path in VECTORS.iterdir()} == {*found, "bad.json"}
    for name, data in found.items():
        assert data == frozen(name), name


def replayed():
    """Both parties on the frozen material."""
    plan, weights = Plan.parse(frozen("plan.json")), fresh().weights
    halves = [
        Half.open(frozen(f"p{i}.bin") + frozen("common.bin"), plan, 2, i, DEAL) for i in (0, 1)
    ]
    owner = Owner(PreparedModel(plan, weights), halves[0], SESSION)
    return owner, Client(PreparedOpening(plan, frozen("opening.bin")), halves[1], SESSION)


def test_the_frozen_messages_replay():
    owner, client = replayed()
    assert client.offline() == frozen("offline.bin")
    owner.offline(frozen("offline.bin"))
    request = client.first(IMAGE)
    while request is not None:
        number = client.request_number
        assert request == frozen(f"request{number}.bin")
        answer = owner.step(number, request)
        assert answer == frozen(f"response{number}.bin")
        request = client.step(answer)
    assert client.result().tolist() == json.loads(frozen("labels.json"))


def parsers():
    """What takes each kind of message; the party's state is fresh each time."""
    plan = Plan.parse(frozen("plan.json"))

    def step(number):
        def take(data):
            owner, _ = replayed()
            owner.offline(frozen("offline.bin"))
            for i in range(number):
                owner.step(i, frozen(f"request{i}.bin"))
            owner.step(number, data)

        return take

    def answer(number):
        def take(data):
            _, client = replayed()
            client.offline()
            client.first(IMAGE)
            for i in range(number):
                client.step(frozen(f"response{i}.bin"))
            client.step(data)

        return take

    return {
        "plan.json": Plan.parse,
        "opening.bin": lambda data: parse_opening(plan, data),
        "p0.bin": lambda data: Half.open(data + frozen("common.bin"), plan, 2, 0, DEAL),
        "p1.bin": lambda data: Half.open(data + frozen("common.bin"), plan, 2, 1, DEAL),
        "common.bin": lambda data: Half.open(frozen("p0.bin") + data, plan, 2, 0, DEAL),
        "offline.bin": lambda data: replayed()[0].offline(data),
        "request0.bin": step(0),
        "request1.bin": step(1),
        "request2.bin": step(2),
        "response0.bin": answer(0),
        "response1.bin": answer(1),
        f"response{plan.requests - 1}.bin": answer(plan.requests - 1),
    }


def bad_cases():
    """Changes to frozen messages: (name, how, where, value)."""
    cases = []
    for name in parsers():
        size = len(frozen(name))
        cases += [(name, "cut", size - 1, 0), (name, "cut", 0, 0), (name, "append", 0, 0)]
        if name != "plan.json":
            cases += [(name, "xor", at, 0xFF) for at in (0, 4, 6, 8)]
    return cases


def apply(data, how, where, value):
    if how == "cut":
        return data[:where]
    if how == "append":
        return data + bytes([value])
    return data[:where] + bytes([data[where] ^ value]) + data[where + 1 :]


def outcome(name, how, where, value):
    try:
        parsers()[name](apply(frozen(name), how, where, value))
    except PrimiaError as error:
        return [type(error).__name__, error.detail]
    return ["accepted", ""]


def frozen_bad():
    path = VECTORS / "bad.json"
    return json.loads(path.read_bytes()) if path.exists() else []


@pytest.mark.parametrize("case", frozen_bad(), ids=lambda case: "-".join(map(str, case[:3])))
def test_bad_messages_are_refused_as_frozen(case):
    *change, expected = case
    assert issubclass(getattr(errors, expected[0]), errors.PeerError)
    assert outcome(*change) == expected


def test_every_kind_of_message_has_bad_vectors():
    assert {case[0] for case in frozen_bad()} == set(parsers())


if __name__ == "__main__":
    VECTORS.mkdir(exist_ok=True)
    for file, content in messages(fresh()).items():
        (VECTORS / file).write_bytes(content)
    lines = [json.dumps([*case, outcome(*case)]) for case in bad_cases()]
    (VECTORS / "bad.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
