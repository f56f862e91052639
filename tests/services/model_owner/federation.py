"""A whole federation in one process: the owner's real app and tasks, and nodes that run the real
client side of secure aggregation over a change that a test chooses instead of training."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache

import httpx
import numpy as np
from fastapi.testclient import TestClient

from primia.aggregation import client, plain, quantise
from primia.aggregation.terms import Groups, RoundId
from primia.aggregation.wire import Header, Kind, frame
from primia.chassis.context import Context
from primia.chassis.identity import Identity, Principal, decode_key, encode_key
from primia.errors import MalformedMessage
from primia.learning.layout import Layout, read_state
from primia.learning.models import spec_layout
from primia.learning.spec import ModelSpec
from primia.messages.rounds import WORK_ITEM, Proposal, WorkItem, round_terms
from primia.prg import Seed, Stream
from services.model_owner.registry import tasks as registry_tasks
from services.model_owner.rounds import store
from services.model_owner.rounds import tasks as rounds_tasks
from services.model_owner.rounds.tables import Run
from tests.support.contexts import Cast

SPEC = ModelSpec(architecture="small_cnn", classes=("normal", "pneumonia"), image_size=16, seed=5)
NODES = ("node-a", "node-b", "node-c")
SAMPLES = defaultdict(lambda: 15, {"node-a": 10, "node-b": 20, "node-c": 33})
BINARY = {"Content-Type": "application/octet-stream"}


@cache
def _layout() -> Layout:
    return spec_layout(SPEC)


class Federation:
    """The owner; ``work()`` stands for its worker and runs everything that is waiting."""

    def __init__(self, ctx: Context, cast: Cast, app: TestClient) -> None:
        self.ctx, self.cast, self.app = ctx, cast, app
        self.nodes = {name: Node(self, cast.identities[name]) for name in NODES}
        self.layout = _layout()

    def join(self, count: int) -> tuple[str, ...]:
        """So many more nodes; the names of all."""
        for number in range(count):
            identity = Identity.fresh(f"site-{number:02d}")
            self.ctx.principals.add(identity.principal("data_node"))
            self.cast.identities[identity.name] = identity
            self.nodes[identity.name] = Node(self, identity)
        return tuple(self.nodes)

    def call(self, who: str, method: str, path: str, **more) -> httpx.Response:
        headers = {**self.cast.headers(who, "model-owner"), **more.pop("headers", {})}
        return self.app.request(method, path, headers=headers, **more)

    def user(self, method: str, path: str, **more) -> httpx.Response:
        return self.call("alice", method, path, **more)

    def with_model(self, name: str = "chest") -> Federation:
        body = {"name": name, **SPEC.model_dump(mode="json")}
        answer = self.user("POST", "/models", json=body)
        assert answer.status_code == 202, answer.text
        self.work()
        return self

    def start(self, **changes) -> str:
        body = {
            "model": "chest",
            "nodes": list(NODES),
            "rounds": 1,
            "training": {"image_size": 16},
            "timeouts": {"review": 100, "train": 100, "exchange": 100},
            **changes,
        }
        answer = self.user("POST", "/rounds", json=body)
        assert answer.status_code == 202, answer.text
        assert answer.headers["Location"] == f"/rounds/{answer.json()['id']}"
        return answer.json()["id"]

    def show(self, run: str) -> dict:
        answer = self.user("GET", f"/rounds/{run}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def row(self, run: str) -> Run:
        with self.ctx.db.reading() as session:
            return store.find(session, run)

    def present_weights(self, run: str) -> np.ndarray:
        path = self.ctx.files.root / self.row(run).weights
        return read_state(path.read_bytes(), self.layout)

    def version_weights(self, version: int) -> np.ndarray:
        answer = self.user("GET", f"/models/chest/versions/{version}/weights")
        assert answer.status_code == 200, answer.text
        return read_state(answer.content, self.layout)

    def work(self) -> None:
        """Every task that a sweep would find waiting, until none is."""
        rounds_tasks.deadlines(self.ctx)
        while waiting := self._waiting():
            for task, row_id in waiting:
                task(self.ctx, row_id)

    def _waiting(self) -> list:
        with self.ctx.db.reading() as session:
            now = self.ctx.clock.now()
            found = {
                registry_tasks.prepare: registry_tasks.store.preparing(session, now),
                rounds_tasks.absorb: store.wanting_absorption(session, now),
                rounds_tasks.open_round: store.wanting_opening(session, now),
                rounds_tasks.finish: store.wanting_finish(session, now),
                rounds_tasks.clean: store.wanting_cleaning(session),
            }
        return [(task, row_id) for task, rows in found.items() for row_id in rows]

    def forward(self, seconds: float = 101) -> None:
        """Let the time of the present phase pass."""
        self.ctx.clock.forward(seconds)
        self.work()

    def turn(self, *names: str) -> int:
        """Each node takes one item and answers it; how many had one."""
        answered = sum(self.nodes[name].step() is not None for name in names or NODES)
        self.work()
        return answered

    def run_out(self, *names: str) -> None:
        """Let the nodes work until there is nothing to do for any of them."""
        self.work()
        for _ in range(200):
            if not self.turn(*names):
                return
        raise AssertionError("the run goes on and on")

    def until(self, kind: str, *names: str, number: int = 1) -> None:
        """Let the nodes work until each of them is asked for this, in this round."""
        for _ in range(50):
            items = {name: self.nodes[name].ask() for name in names or NODES}
            lagging = [
                name
                for name, item in items.items()
                if item is None or (item.kind, getattr(item, "round", number)) != (kind, number)
            ]
            if not lagging:
                return
            assert self.turn(*lagging), f"{lagging} have nothing to do"
        raise AssertionError(f"the nodes are never asked to {kind}")


@dataclass
class Place:
    """What a node keeps of a round."""

    change: np.ndarray
    weights: str
    state: client.NodeState | None = None


@dataclass
class Node:
    """``change(number, size)`` stands for training: float32 (size,), seeded by name and round."""

    federation: Federation
    identity: Identity
    classes: tuple[str, ...] = SPEC.classes
    proposals: dict[str, Proposal] = field(default_factory=dict)
    places: dict[tuple[str, int], Place] = field(default_factory=dict)
    losses: dict[int | str, float] = field(default_factory=dict)  # by round or name
    stops_after: int | None = None  # the round in which early stopping comes

    @property
    def name(self) -> str:
        return self.identity.name

    def call(self, method: str, path: str, **more) -> httpx.Response:
        return self.federation.call(self.name, method, path, **more)

    def ask(self) -> WorkItem | None:
        answer = self.call("GET", "/node/work")
        assert answer.status_code in (200, 204), answer.text
        return WORK_ITEM.validate_json(answer.content) if answer.content else None

    def step(self) -> WorkItem | None:
        item = self.ask()
        if item is not None:
            path, body, content = self.answer(item)
            answer = self.put(path, body, content)
            assert answer.status_code == 204, f"{self.name} {item.kind}: {answer.text}"
        return item

    def put(self, path: str, body: dict | None, content: bytes | None = None) -> httpx.Response:
        if content is not None:
            return self.call("PUT", path, content=content, headers=BINARY)
        return self.call("PUT", path, json=body) if body is not None else self.call("PUT", path)

    def change(self, number: int) -> np.ndarray:
        seed = Seed(hashlib.sha256(f"{self.name}/{number}".encode()).digest()[:16])
        words = Stream(seed, "change").words(self.federation.layout.size)
        return ((words / 2**32 - 0.5) / 50).astype(np.float32)

    def answer(self, item: WorkItem) -> tuple[str, dict | None, bytes | None]:
        """Path, JSON body, binary body; the same for the same item."""
        return getattr(self, f"_{item.kind}")(item)

    def _review(self, item):
        self.proposals[item.run] = item.proposal
        body = {"accepted": True, "samples": SAMPLES[self.name], "classes": list(self.classes)}
        return f"/rounds/{item.run}/decision", body, None

    def _fetch(self, item) -> None:
        answer = self.call("GET", f"/rounds/{item.run}/{item.round}/weights")
        assert answer.status_code == 200, answer.text
        assert len(answer.content) == item.weights_bytes
        assert hashlib.sha256(answer.content).hexdigest() == item.weights_digest

    def _train(self, item):
        self._fetch(item)
        proposal = self.proposals[item.run]
        key = (item.run, item.round)
        place = self.places.setdefault(key, Place(self.change(item.round), item.weights_digest))
        body = {
            "samples": SAMPLES[self.name],
            "loss": 1 / item.round,
            "accuracy": 0.5,
            "seconds": 0.1,
            "received": self._scores(item.round, 0.7, 0.25),
            "stopped": self.stops_after is not None and item.round >= self.stops_after,
        }
        if proposal.secure:
            body |= self._keys(item, proposal, place)
        return f"/rounds/{item.run}/{item.round}/report", body, None

    def _keys(self, item, proposal: Proposal, place: Place) -> dict:
        groups = self.groups()
        bounds = quantise.exponents(place.change, groups)
        if place.state is None:
            place.state, _ = client.advertise(
                Seed.fresh(),
                round_id=RoundId(bytes.fromhex(item.run), item.round),
                node=self.name,
                threshold=proposal.threshold,
                samples=SAMPLES[self.name],
                groups=groups,
                exponents=bounds,
                sign=self._sign(item),
                assumed=proposal.assumed(),
            )
        return {
            "exponents": {"parameters": bounds[0], "buffers": bounds[1]},
            "advertisement": encode_key(place.state.advertisement.to_bytes()),
        }

    def groups(self) -> Groups:
        layout = self.federation.layout
        return Groups(layout.group_size("parameters"), layout.group_size("buffers"))

    def _terms(self, item) -> bytes:
        return round_terms(self.proposals[item.run], self.places[item.run, item.round].weights)

    def _sign(self, item):
        terms = self._terms(item)
        return lambda message: self.identity.sign(message + terms)

    def _verify(self, item):
        cards = {card.name: card for card in self.proposals[item.run].nodes}

        terms = self._terms(item)

        def verify(node: str, message: bytes, signature: bytes) -> bool:
            card = cards[node]
            principal = Principal(name=node, role="data_node", public_key=card.public_key)
            try:
                principal.verify(message + terms, signature)
            except MalformedMessage:
                return False
            return True

        return verify

    def _share_keys(self, item):
        place = self.places[item.run, item.round]
        roster = {name: decode_key(text) for name, text in item.roster.items()}
        place.state, sealed = client.share(place.state, roster, self._verify(item))
        body = {"envelopes": {name: encode_key(data) for name, data in sealed.items()}}
        return f"/rounds/{item.run}/{item.round}/envelopes", body, None

    def _upload(self, item):
        place = self.places[item.run, item.round]
        kind, vector = Kind.PLAIN, place.change
        if self.proposals[item.run].secure:
            inbox = {name: decode_key(text) for name, text in item.envelopes.items()}
            place.state, vector = client.mask(place.state, inbox, place.change)
            kind = Kind.MASKED
        header = Header(kind, RoundId(bytes.fromhex(item.run), item.round), len(vector))
        return f"/rounds/{item.run}/{item.round}/update", None, b"".join(frame(header, vector))

    def _confirm(self, item):
        place = self.places[item.run, item.round]
        sign = self._sign(item)
        place.state, signature = client.confirm(place.state, item.survivors, sign, item.members)
        body = {"signature": encode_key(signature)}
        return f"/rounds/{item.run}/{item.round}/confirmation", body, None

    def _unmask(self, item):
        place = self.places[item.run, item.round]
        confirmations = {name: decode_key(text) for name, text in item.confirmations.items()}
        place.state, reveal = client.reveal(
            place.state, item.survivors, confirmations, self._verify(item), item.members
        )
        return f"/rounds/{item.run}/{item.round}/shares", {"reveal": encode_key(reveal)}, None

    def _evaluate(self, item):
        self._fetch(item)
        others = {}
        for other in item.others:
            answer = self.call("GET", f"/rounds/{item.run}/models/{other.name}")
            assert hashlib.sha256(answer.content).hexdigest() == other.weights_digest
            others[other.name] = {"scores": self._scores(other.name, 0.5, 0.75)}
        body = {"scores": self._scores("last", 0.5, 0.75), "others": others}
        return f"/rounds/{item.run}/evaluation", body, None

    def _scores(self, key: int | str, loss: float, accuracy: float) -> dict:
        return {"samples": 4, "loss": self.losses.get(key, loss), "accuracy": accuracy}

    def _stop(self, item):
        return f"/rounds/{item.run}/acknowledgement", None, None

    def fail(self, run: str, code: str = "trouble", **more) -> None:
        body = {"code": code, "detail": "The disk is on fire.", **more}
        answer = self.call("PUT", f"/rounds/{run}/failure", json=body)
        assert answer.status_code == 204, answer.text


def exact_mean(federation: Federation, number: int, names=NODES) -> np.ndarray:
    """The weighted mean of the nodes' changes, without quantisation."""
    changes = {name: federation.nodes[name].change(number) for name in names}
    total = plain.WeightedMean(federation.layout.size)
    for name, change in changes.items():
        total.add(change, SAMPLES[name])
    return total.result()


def tolerance(federation: Federation, number: int, names=NODES) -> np.ndarray:
    """The stated quantisation step of each value, and one rounding of the float32 weights."""
    groups = federation.nodes[NODES[0]].groups()
    bounds = quantise.largest_exponents(
        [quantise.exponents(federation.nodes[n].change(number), groups) for n in NODES]
    )
    weight = sum(SAMPLES[name] for name in names) / sum(SAMPLES[name] for name in NODES)
    out = np.empty(groups.size)
    for (_, span), bound in zip(groups.spans(), bounds, strict=True):
        out[span] = quantise.tolerance(bound, len(names), weight)
    return out
