"""P0, the model owner, in one session: bytes in, bytes out, no I/O.

P0 learns that an inference of this shape ran and nothing else: what it receives is masked with P1's
seed. Every step is accepted once; a repeated one gets the stored answer, another body for it is
refused, for a second answer under the same masks would leak.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence

import numpy as np

from primia.errors import InvalidInput, MalformedMessage, UnexpectedMessage
from primia.fss.evaluation import NumpyEvaluator
from primia.fss.kernel import Evaluator
from primia.mpc.frames import (
    BINDING_BYTES,
    OFFLINE_STEP,
    Answer,
    Kind,
    check_id,
    frame,
    many_from_planes,
    offline_payload,
    payload,
    request_payload,
    words_to_bytes,
)
from primia.mpc.gate_shape import Gate
from primia.mpc.gates import server_close, server_open
from primia.mpc.masks import window
from primia.mpc.material import Half
from primia.mpc.opening import check_weights
from primia.mpc.operations import Linear, Shape
from primia.mpc.plan import Plan
from primia.mpc.walk import Value, walk
from primia.mpc.weights import LayerWeights
from primia.ring import LinearMap, MakeMap, Ring, bias_shape

# The offline message counts as the step before step 0.
_OFFLINE = -1


def check_offline(
    plan: Plan, batch: int, session_id: bytes, deal_id: bytes, body: bytes
) -> memoryview:
    """P1's masked shares in an offline frame; MalformedMessage unless it is of this session."""
    size = offline_payload(plan, batch)
    data = payload(body, Kind.OFFLINE, session_id, OFFLINE_STEP, size)
    if data[:BINDING_BYTES] != plan.digest() + deal_id:
        raise MalformedMessage("The other party's half is of another plan or deal.")
    return data[BINDING_BYTES:]


class PreparedModel:
    """A model version's weights, prepared once and shared by its sessions; read-only, a secret."""

    def __init__(
        self,
        plan: Plan,
        weights: Mapping[str, LayerWeights],
        linear_map: MakeMap = LinearMap,
    ) -> None:
        check_weights(plan, weights)
        self.plan = plan
        self._maps = {
            op.layer: linear_map(weights[op.layer].weight, window(op)) for op, _ in plan.linear()
        }
        self._biases = {layer: given.bias.view(np.uint32) for layer, given in weights.items()}

    def apply(self, layer: str, x: Ring) -> Ring:
        """W * x + bias."""
        result = self._maps[layer](x)
        result += self._biases[layer].reshape(bias_shape(result.ndim))
        return result

    def __repr__(self) -> str:
        return "PreparedModel(<secret>)"


class Owner:
    """One session: ``offline`` once, then ``step`` 0 to ``plan.requests`` - 1."""

    def __init__(
        self,
        model: PreparedModel,
        half: Half,
        session_id: bytes,
        evaluator: Evaluator | None = None,
    ) -> None:
        check_id(session_id, "session's")
        if half.party != 0 or half.plan != model.plan:
            raise InvalidInput("The dealt half is not P0's for this model's plan.")
        self._plan = model.plan
        self._half = half
        self._session_id = session_id
        self._side = _OwnerSide(model, half, evaluator or NumpyEvaluator())
        self._run: Generator[bytes, memoryview, Value] | None = None
        self._next = _OFFLINE
        self._answered: tuple[int, bytes, bytes] | None = None  # step, digest of body, answer
        self._closed = False

    @property
    def done(self) -> bool:
        """Whether the last step has been answered."""
        return self._next == self._plan.requests

    def offline(self, body: bytes) -> bytes:
        """Take P1's masked shares of every gate; answers an empty frame."""
        if (stored := self._stored(_OFFLINE, body)) is not None:
            return stored
        half = self._half
        deltas = check_offline(self._plan, half.batch, self._session_id, half.deal_id, body)
        self._side.take_deltas(deltas)
        return self._store(body, frame(Kind.ACCEPTED, self._session_id, OFFLINE_STEP, []))

    def step(self, number: int, body: bytes) -> bytes:
        """The response to request ``number``.

        ``UnexpectedMessage``: out of order, or another body for a step that is done.
        ``MalformedMessage``: the body does not parse; the session is as it was.
        """
        if not 0 <= number < self._plan.requests:
            raise UnexpectedMessage(f"Step {number} is out of order: there is no such step.")
        if (stored := self._stored(number, body)) is not None:
            return stored
        size = request_payload(self._plan, self._half.batch, number)
        data = payload(body, Kind.REQUEST, self._session_id, number, size)
        if number:
            gate = self._plan.gates()[number - 1]
            Answer.parse(data, gate, self._half.batch * gate.count)
        try:
            answer = self._advance(number, data)
        except BaseException:
            self.close()  # the masks may have been used: the session is broken
            raise
        return self._store(body, frame(Kind.RESPONSE, self._session_id, number, [answer]))

    def _advance(self, number: int, data: memoryview) -> bytes:
        try:
            if number == 0:
                shape = (self._half.batch, *self._plan.input_shape)
                image = np.frombuffer(data, dtype="<u4").reshape(shape)
                self._run = walk(self._plan, self._half.batch, self._side, image)
                return next(self._run)
            assert self._run is not None
            return self._run.send(data)
        except StopIteration as end:
            self._let_go()  # all is spent; the last answer may be asked for again
            return words_to_bytes(end.value)

    def _stored(self, number: int, body: bytes) -> bytes | None:
        if self._closed:
            raise UnexpectedMessage("The session is closed.", hint="Start a new one.")
        if self._answered and self._answered[0] == number:
            if hashlib.sha256(body).digest() == self._answered[1]:
                return self._answered[2]
            raise UnexpectedMessage("This step was answered before, for another body.")
        if number != self._next:
            raise UnexpectedMessage(
                f"Step {_name(number)} came out of order; {_name(self._next)} is next."
            )
        return None

    def _store(self, body: bytes, answer: bytes) -> bytes:
        self._answered = (self._next, hashlib.sha256(body).digest(), answer)
        self._next += 1
        return answer

    def close(self) -> None:
        """Drop all state; the half is burnt."""
        self._closed = True
        self._answered = None
        self._let_go()

    def _let_go(self) -> None:
        self._run = None
        self._side.close()
        self._half.close()

    def __repr__(self) -> str:
        return f"Owner(<session, next {_name(self._next)}>)"


def _name(number: int) -> str:
    return "offline" if number < 0 else str(number)


class _OwnerSide:
    """P0's side of a walk; a gate yields its response and receives the next request's payload."""

    def __init__(self, model: PreparedModel, half: Half, evaluator: Evaluator) -> None:
        self._model = model
        self._half = half
        self._evaluator = evaluator
        self._corrections = half.corrections()
        self._keys = half.keys()
        self._deltas = memoryview(b"")

    def take_deltas(self, data: memoryview) -> None:
        self._deltas = data

    def public(self, values: Ring) -> Ring:
        return values

    def narrow(self, x: Ring, low: int) -> Ring:
        """Rounds up, the other party down: the sum is off to either side, and fair."""
        return (x >> np.uint32(low)) + np.uint32(1)

    def linear(self, op: Linear, x: Value, before: Shape, after: Shape) -> Value:
        """y0 = W * z~ + bias + C0."""
        assert x is not None
        result = self._model.apply(op.layer, x)
        result += self._corrections.words(result.size).reshape(len(x), *after)
        return result

    def gate(
        self, number: int, gate: Gate, inputs: Sequence[Value]
    ) -> Generator[bytes, memoryview, Sequence[Ring]]:
        count = self._half.batch * gate.count
        seed = (self._half.seed, number)
        known = [y for y in inputs if y is not None]
        delta = self._take_delta(gate, count)
        masked = server_open(gate, seed, known, delta, self._keys, self._evaluator)
        request = yield masked.write(gate)
        answer = Answer.parse(request, gate, count)
        return server_close(gate, seed, masked, answer, self._corrections)

    def _take_delta(self, gate: Gate, count: int) -> Ring:
        size = gate.offline_bytes(self._half.batch)
        data, self._deltas = self._deltas[:size], self._deltas[size:]
        return many_from_planes(data, gate.lanes, count, gate.width)

    def close(self) -> None:
        self._deltas = memoryview(b"")
        self._corrections.close()
        self._keys.close()
