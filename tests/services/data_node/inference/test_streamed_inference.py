"""Whole inferences by SecureNN over real HTTP: three services, their streams, the plain model."""

from __future__ import annotations

import numpy as np
import pytest

from primia.chassis.stream_host import StreamHost
from primia.errors import PeerUnavailable
from primia.learning.images import decode, normalise
from primia.mpc import oracle
from primia.mpc.securenn.layout import steps
from services.data_node.inference import streamed
from tests.support.contexts import Cast
from tests.support.encrypted import CLASSES, DEALER, NODE, OTHER, OWNER, SIZE, network, picture
from tests.support.servers import wait_until

IMAGES = [picture(seed) for seed in range(3)]
BY = {"protocol": "securenn"}


@pytest.fixture(scope="module")
def grid(tmp_path_factory, broker_url):
    with network(Cast(tmp_path_factory.mktemp("grid")), broker_url) as made:
        made.servings = made.serve(results=("scores", "label"))
        # Room for assistances that nobody joins: each is kept for a minute.
        made[DEALER].ctx.extras["assistance.host"] = StreamHost(16, 16)
        yield made


def expected(grid, images):
    plans = {each["result"]: each["plan"] for each in grid.servings}
    compiled = grid.compiled(plans["scores"])
    pixels = np.stack([decode(data, SIZE, 1) for data in images])
    encoded = oracle.encode(compiled.plan, normalise(pixels, 0.5, 0.25))
    return compiled.plan, oracle.decode_scores(
        compiled.plan, oracle.evaluate(compiled, encoded).scores
    )


def busy(grid):
    """Sessions at both services."""
    hosts = [
        grid[OWNER].ctx.extras.get("inference.streams"),
        grid[DEALER].ctx.extras.get("assistance.host"),
    ]
    return sum(host.busy for host in hosts if host is not None)


def idle(grid):
    return busy(grid) == 0


def test_scores_are_the_plain_ones_and_no_deal_is_made(grid):
    plan, wanted = expected(grid, IMAGES)
    status, result = grid.classify(*IMAGES, result="scores", **BY)
    found = np.array([[each["scores"][name] for name in CLASSES] for each in result["predictions"]])
    np.testing.assert_allclose(found, wanted, atol=0.01)
    assert status["protocol"] == "securenn"
    assert (status["attempts"], status["step"]) == (1, len(list(steps(plan, 3))))
    cost = status["cost"]
    assert cost["online_bytes"] > 0 < cost["offline_bytes"]
    assert cost["material_bytes"] == 0
    assert grid.deals() == {}
    wait_until(lambda: idle(grid), 10, "the sessions' end")


def test_a_label_alone_comes_without_scores(grid):
    _, wanted = expected(grid, IMAGES[:2])
    _, result = grid.classify(*IMAGES[:2], **BY)
    assert [each["label"] for each in result["predictions"]] == [
        CLASSES[int(scores.argmax())] for scores in wanted
    ]
    assert all(each["scores"] is None for each in result["predictions"])


def test_the_opening_comes_once(grid):
    def offline_bytes():
        status, _ = grid.classify(IMAGES[0], result="scores", **BY)
        return status["cost"]["offline_bytes"]

    grid[NODE].worker.extras.pop("inference.streamed openings", None)
    first, again = offline_bytes(), offline_bytes()
    plan, _ = expected(grid, IMAGES[:1])
    assert first - again == 8 * sum(np.prod(shape) for _, shape in plan.linear())


def test_what_breaks_is_tried_again(grid, monkeypatch):
    """The first attempt is broken off in the middle; both other parties then end theirs."""
    broken = []
    real = streamed.carry

    def breaking(talk, links, *watch):
        def dying(gate):
            if gate == 1 and not broken:
                broken.append(gate)
                raise PeerUnavailable("The line is dead.")
            watch[0](gate)

        return real(talk, links, dying) if watch else real(talk, links)

    monkeypatch.setattr(streamed, "carry", breaking)
    answer = grid.infer(IMAGES[0], **BY)
    status = grid.ended(answer.json()["id"])
    assert status["state"] == "done", status
    assert status["attempts"] == 2
    assert broken == [1]
    wait_until(lambda: idle(grid), 10, "the sessions' end")


def ask(grid, who=NODE, **changes):
    serving = grid.servings[0]
    wanted = {"plan": serving["plan"], "digest": serving["digest"], "batch": 1, **changes}
    return grid.call("POST", DEALER, "/assistances", who=who, json=wanted)


@pytest.mark.parametrize(
    ("changes", "status"),
    [({"plan": "0" * 32}, 404), ({"digest": "0" * 64}, 409), ({"batch": 65}, 422)],
)
def test_assistance_for_what_is_not_there_is_refused(grid, changes, status):
    assert ask(grid, **changes).status_code == status


def test_a_stream_is_its_parties_alone_and_open_once(grid):
    opened = ask(grid).json()
    path = f"/assistances/{opened['id']}/stream"
    assert (opened["owner"], opened["node"]) == (OWNER, NODE)
    assert grid.call("GET", DEALER, path, who=OTHER).status_code == 404
    assert grid.call("GET", DEALER, path, who="alice").status_code == 403
    assert grid.call("PUT", DEALER, path, who=OTHER, content=b"").status_code == 404
    assert grid.call("GET", DEALER, path.removesuffix("/stream"), who=NODE).json() == opened
    assert grid.call("GET", DEALER, path.removesuffix("/stream"), who=OTHER).status_code == 404
    assert grid.call("PUT", DEALER, path, who=NODE, content=b"").status_code == 204
    assert grid.call("PUT", DEALER, path, who=NODE, content=b"").status_code == 409
    unknown = f"/inference/streams/{'0' * 32}/stream"
    assert grid.call("GET", OWNER, unknown, who=NODE).status_code == 404


def test_a_second_reader_of_a_stream_is_told_so(grid):
    opened = ask(grid).json()
    url = grid.urls[DEALER] + f"/assistances/{opened['id']}/stream"
    headers = {"Authorization": f"Bearer {grid.cast.token(NODE, DEALER)}"}
    with grid.http.stream("GET", url, headers=headers) as first:
        assert first.status_code == 200
        again = grid.http.get(url, headers=headers)
    assert again.status_code == 409
    assert again.json()["type"].endswith("conflict")
    assert "in use" in again.json()["detail"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"batch": 2}, "for another batch than"),
        ({"plan": 1}, "for another plan than"),
        ({"assistance": "0" * 32}, "knows no such assistance"),
    ],
)
def test_the_owner_joins_no_assistance_for_anything_but_its_own_plan(grid, changes, told):
    serving, opened = grid.servings[0], ask(grid).json()
    wanted = {"plan": serving["plan"], "digest": serving["digest"], "assistance": opened["id"]}
    wanted |= {"batch": 1, **changes}
    if "plan" in changes:
        other = grid.servings[changes["plan"]]
        wanted |= {"plan": other["plan"], "digest": other["digest"]}
    answer = grid.call("POST", OWNER, "/inference/streams", who=NODE, json=wanted)
    assert answer.status_code == 409
    assert told in answer.json()["detail"]


def test_the_owner_joins_no_assistance_of_another_node(grid):
    serving, opened = grid.servings[0], ask(grid).json()
    wanted = {"plan": serving["plan"], "digest": serving["digest"], "assistance": opened["id"]}
    answer = grid.call("POST", OWNER, "/inference/streams", who=OTHER, json=wanted)
    assert answer.status_code == 409
    assert "another node" in answer.json()["detail"]


def test_a_stranger_gets_no_stream(grid):
    opened = ask(grid).json()
    url = grid.urls[DEALER] + f"/assistances/{opened['id']}/stream"
    assert grid.http.get(url).status_code == 401
    assert grid.http.put(url, content=b"").status_code == 401


def test_a_version_that_is_withdrawn_before_the_session_fails_the_job(grid):
    before = busy(grid)
    grid[NODE].jobs.held.add("inference.run")
    inference = grid.infer(IMAGES[0], **BY).json()["id"]
    path = "/models/chest/versions/1/serve"
    assert grid.call("DELETE", OWNER, path).status_code == 204
    plan, digest = (grid.servings[0][key] for key in ("plan", "digest"))
    wanted = {"plan": plan, "digest": digest, "assistance": "0" * 32, "batch": 1}
    answer = grid.call("POST", OWNER, "/inference/streams", who=NODE, json=wanted)
    assert (answer.status_code, "not served" in answer.json()["detail"]) == (409, True)
    grid[NODE].jobs.held.clear()
    grid[NODE].jobs.sweep()
    status = grid.ended(inference)
    assert (status["state"], status["attempts"]) == ("failed", 4)
    # Told by whichever of the two is asked first after it has heard of it.
    assert any(told in status["reason"] for told in ("served", "was withdrawn")), status
    assert busy(grid) <= before
    grid.servings = grid.ask_serving(results=("scores", "label"))
    assert grid.classify(IMAGES[0], **BY)[0]["attempts"] == 1
