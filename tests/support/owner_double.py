"""A model owner that lives in memory and speaks real HTTP behind the real door.

It does what ``messages.rounds`` says an owner does, with the real arithmetic of
``primia.aggregation``, for runs in which every node answers; ``disturb`` lets a test falsify items.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import uvicorn
from fastapi import APIRouter, Depends, Request, Response

from primia.aggregation import plain, server, wire
from primia.aggregation.roster import Roster
from primia.aggregation.survivors import Outcome
from primia.aggregation.terms import Groups, RoundId
from primia.chassis.app import create_app
from primia.chassis.auth import require
from primia.chassis.context import Context
from primia.chassis.identity import Principal, decode_key, encode_key
from primia.chassis.service import Service
from primia.errors import NotFound, UnexpectedMessage
from primia.learning.layout import write_state
from primia.learning.models import create_model, flatten, spec_layout
from primia.learning.spec import ModelSpec
from primia.messages import rounds as messages
from primia.messages.common import ModelCard
from services.model_owner.settings import ModelOwnerSettings
from services.model_owner.tables import Base
from tests.support.servers import free_port, wait_until

RUN = "ab" * 16
SPEC = ModelSpec(
    architecture="small_cnn", classes=("normal", "viral"), channels=1, image_size=16, seed=5
)
SECURE = ("decision", "report", "envelopes", "update", "confirmation", "shares")
PLAIN = ("decision", "report", "update")


class OwnerDouble:
    def __init__(self, ctx: Context, nodes: list[Principal], *, secure=True, rounds=2, **training):
        self.ctx, self.rounds, self.secure = ctx, rounds, secure
        self.nodes = {node.name: node for node in nodes}
        self.layout = spec_layout(SPEC)
        self.weights = {1: flatten(create_model(SPEC))}
        self.number = 1
        self.answers: dict[tuple[str, str, int], bytes] = {}
        self.log: list[tuple[str, str, int, int]] = []  # (node, kind, round, status)
        self.ended: messages.Stop | None = None
        self.disturb: Callable[[str, messages.WorkItem], messages.WorkItem | None] = (
            lambda _node, item: item
        )
        self.refuse: Callable[[str, str], bool] = lambda _node, _kind: False
        self.lock = threading.RLock()
        settings = {"image_size": 16, "batches": 2, "batch_size": 4, "learning_rate": 1e-3}
        self.proposal = messages.Proposal(
            run=RUN,
            owner=ctx.identity.name,
            model=ModelCard(
                name="chest",
                version=1,
                architecture="small_cnn",
                classes=SPEC.classes,
                channels=1,
                image_size=16,
                digest="0" * 64,
            ),
            nodes=tuple(
                messages.NodeCard(name=node.name, public_key=node.public_key) for node in nodes
            ),
            rounds=rounds,
            planned=rounds,
            training=messages.TrainingSettings(**{**settings, **training}),
            secure=secure,
            threshold=len(nodes) // 2 + 1 if secure else 1,
            timeouts=messages.Timeouts(),
        )

    # What the owner holds

    def file(self, number: int) -> bytes:
        return write_state(self.weights[number], self.layout)

    def _terms(self) -> bytes:
        digest = hashlib.sha256(self.file(self.number)).hexdigest()
        return messages.round_terms(self.proposal, digest)

    def _verify(self, node: str, message: bytes, signature: bytes) -> bool:
        try:
            self.nodes[node].verify(message + self._terms(), signature)
        except Exception:  # noqa: BLE001
            return False
        return True

    def _all(self, kind: str, number: int) -> dict[str, bytes] | None:
        found = {node: self.answers.get((node, kind, number)) for node in self.nodes}
        return None if None in found.values() else found  # type: ignore[return-value]

    def _parsed(self, kind: str, model, number: int):
        return {
            node: model.model_validate_json(body)
            for node, body in (self._all(kind, number) or {}).items()
        }

    def _advertisements(self) -> dict[str, bytes]:
        reports = self._parsed("report", messages.TrainReport, self.number)
        return {node: decode_key(report.advertisement) for node, report in reports.items()}

    def _envelopes(self) -> dict[str, dict[str, bytes]]:
        found = self._parsed("envelopes", messages.Envelopes, self.number)
        return {
            node: {to: decode_key(data) for to, data in each.envelopes.items()}
            for node, each in found.items()
        }

    # What it asks

    def item(self, node: str) -> messages.WorkItem | None:
        with self.lock:
            found = self._item(node)
            return found if found is None else self.disturb(node, found)

    def _item(self, node: str) -> messages.WorkItem | None:
        if self.ended is not None:
            done = (node, "acknowledgement", 0) in self.answers
            return None if done else self.ended
        if (node, "decision", 0) not in self.answers:
            return messages.Review(run=RUN, proposal=self.proposal)
        if self._all("decision", 0) is None:
            return None
        if self.number > self.rounds:
            done = (node, "evaluation", 0) in self.answers
            return None if done else self._with_weights(messages.Evaluate)
        for kind in (SECURE if self.secure else PLAIN)[1:]:
            if (node, kind, self.number) not in self.answers:
                return self._round_item(node, kind)
            if self._all(kind, self.number) is None:
                return None
        return None

    def _with_weights(self, kind) -> messages.WorkItem:
        file = self.file(self.number)
        digest = hashlib.sha256(file).hexdigest()
        return kind(run=RUN, round=self.number, weights_digest=digest, weights_bytes=len(file))

    def _round_item(self, node: str, kind: str) -> messages.WorkItem:
        place = {"run": RUN, "round": self.number}
        if kind == "report":
            return self._with_weights(messages.Train)
        if kind == "envelopes":
            roster = {name: encode_key(data) for name, data in self._advertisements().items()}
            return messages.ShareKeys(**place, roster=roster)
        if kind == "update":
            reports = self._parsed("report", messages.TrainReport, self.number)
            inbox = server.inbox(self._envelopes(), node) if self.secure else {}
            return messages.Upload(
                **place,
                samples={name: report.samples for name, report in reports.items()},
                envelopes={name: encode_key(data) for name, data in inbox.items()},
            )
        survivors = tuple(sorted(self.nodes))
        if kind == "confirmation":
            return messages.Confirm(**place, survivors=survivors)
        confirmed = self._parsed("confirmation", messages.Confirmation, self.number)
        signatures = {name: each.signature for name, each in confirmed.items()}
        return messages.Unmask(**place, survivors=survivors, confirmations=signatures)

    # What it is told

    def put(self, node: str, kind: str, number: int, body: bytes) -> int:
        with self.lock:
            if self.refuse(node, kind):
                raise UnexpectedMessage("The double refuses this.")
            known = self.answers.setdefault((node, kind, number), body)
            if known != body:
                raise UnexpectedMessage(f"Another {kind} was given before.")
            self._advance()
            return 204

    def _advance(self) -> None:
        if self.ended is not None or self.number > self.rounds:
            if self.ended is None and self._all("evaluation", 0) is not None:
                self.ended = messages.Stop(run=RUN, state="finished")
            return
        last = (SECURE if self.secure else PLAIN)[-1]
        if self._all(last, self.number) is None:
            return
        mean = self._open() if self.secure else self._mean()
        self.weights[self.number + 1] = self.weights[self.number] + mean
        self.number += 1

    def _payloads(self, kind: wire.Kind) -> dict[str, memoryview]:
        expected = wire.Header(kind, RoundId(bytes.fromhex(RUN), self.number), self.layout.size)
        updates = self._all("update", self.number) or {}
        for body in updates.values():
            wire.read_header(body[: wire.HEADER_BYTES], expected)
        return {node: memoryview(body)[wire.HEADER_BYTES :] for node, body in updates.items()}

    def _mean(self) -> np.ndarray:
        total = plain.WeightedMean(self.layout.size)
        reports = self._parsed("report", messages.TrainReport, self.number)
        for node, payload in self._payloads(wire.Kind.PLAIN).items():
            total.add(payload, reports[node].samples)
        return total.result()

    def _open(self) -> np.ndarray:
        groups = Groups(self.layout.group_size("parameters"), self.layout.group_size("buffers"))
        assert groups.size == self.layout.size
        roster = Roster.of(self._advertisements(), self._verify)
        envelopes = self._envelopes()
        outcome = Outcome.of(roster, envelopes, self.nodes)
        total = server.RunningSum(self.layout.size)
        for payload in self._payloads(wire.Kind.MASKED).values():
            total.add(payload)
        shares = self._parsed("shares", messages.Shares, self.number)
        reveals = {node: decode_key(each.reveal) for node, each in shares.items()}
        server.unmask(total.total, roster, envelopes, outcome, reveals)
        return server.mean(total.total, roster, outcome)

    def stop(self, state="cancelled", reason="") -> None:
        with self.lock:
            self.ended = messages.Stop(run=RUN, state=state, reason=reason)

    def kinds(self, node: str) -> list[tuple[str, int]]:
        return [(kind, number) for who, kind, number, status in self.log if who == node]

    # Over HTTP

    def app(self):
        service = Service(
            kind="model_owner",
            title="Model owner (double)",
            summary="",
            settings=ModelOwnerSettings,
            metadata=Base.metadata,
            migrations=None,  # type: ignore[arg-type]
            routers=[self._router()],
            tasks={},
            sweeps={},
        )
        return create_app(service, self.ctx)

    def _router(self) -> APIRouter:
        router = APIRouter()
        caller = Depends(require("data_node"))

        @router.get("/node/work")
        def work(wait: float = 0, node: Principal = caller) -> Response:
            until = time.monotonic() + wait
            while (item := self.item(node.name)) is None:
                if time.monotonic() >= until:
                    return Response(status_code=204)
                time.sleep(0.02)
            return Response(item.model_dump_json(), media_type="application/json")

        @router.get("/rounds/{run}/{number}/weights")
        def weights(run: str, number: int, _node: Principal = caller) -> Response:
            if run != RUN or number not in self.weights:
                raise NotFound("There are no such weights.")
            return Response(self.file(number), media_type="application/octet-stream")

        @router.put("/rounds/{run}/{kind}")
        async def whole(run: str, kind: str, request: Request, node: Principal = caller):
            return self._answered(node.name, kind, 0, await request.body())

        @router.put("/rounds/{run}/{number}/{kind}")
        async def one(run: str, number: int, kind: str, request: Request, node: Principal = caller):
            return self._answered(node.name, kind, number, await request.body())

        return router

    def _answered(self, node: str, kind: str, number: int, body: bytes) -> Response:
        status = 409
        try:
            status = self.put(node, kind, number, body)
        finally:
            self.log.append((node, kind, number, status))
        return Response(status_code=status)


@contextlib.contextmanager
def serving(app, port: int | None = None) -> Iterator[str]:
    """The app under uvicorn in a thread of its own; yields its URL."""
    port = port or free_port()
    server_ = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, lifespan="on")
    )
    thread = threading.Thread(target=server_.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server_.started, 10, "the owner double")
        yield f"http://127.0.0.1:{port}"
    finally:
        server_.should_exit = True
        thread.join(10)
