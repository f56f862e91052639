"""P1, the data node, in one session: bytes in, bytes out, no I/O.

P1's share of every value follows from its seed and E, so that all but the comparisons is done
before the image exists. P1 sees sums y + r and bits d, both masked with P0's half of the
randomness, and in the end P0's share of the result.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from primia.errors import InvalidInput, MalformedMessage, UnexpectedMessage
from primia.fixed_point import decode, encode
from primia.fss.evaluation import NumpyEvaluator
from primia.fss.kernel import Evaluator
from primia.mpc.frames import (
    OFFLINE_STEP,
    Kind,
    Masked,
    check_id,
    frame,
    payload,
    planes,
    response_payload,
    words_to_bytes,
)
from primia.mpc.gate_shape import Gate
from primia.mpc.gates import client_answer, client_prepare
from primia.mpc.masks import GateStreams, image_mask, result_mask, window
from primia.mpc.material import Half
from primia.mpc.opening import parse_opening
from primia.mpc.operations import Linear, Shape
from primia.mpc.plan import Plan
from primia.mpc.walk import Value, walk
from primia.ring import LinearMap, MakeMap, Ring


class PreparedOpening:
    """The masked weights E of a model version, parsed once and shared by its sessions."""

    def __init__(
        self, plan: Plan, opening: bytes | memoryview, linear_map: MakeMap = LinearMap
    ) -> None:
        layers = parse_opening(plan, opening)
        self.plan = plan
        self._maps = {op.layer: linear_map(layers[op.layer], window(op)) for op, _ in plan.linear()}

    def apply(self, layer: str, x: Ring) -> Ring:
        """E * x."""
        return self._maps[layer](x)


class Client:
    """One session: ``offline``, ``first``, then ``step`` until it returns None, then ``result``."""

    def __init__(
        self,
        opening: PreparedOpening,
        half: Half,
        session_id: bytes,
        evaluator: Evaluator | None = None,
    ) -> None:
        check_id(session_id, "session's")
        if half.party != 1 or half.plan != opening.plan:
            raise InvalidInput("The dealt half is not P1's for these masked weights.")
        self._plan = opening.plan
        self._gates = opening.plan.gates()
        self._opening = opening
        self._half = half
        self._session_id = session_id
        self._evaluator = evaluator or NumpyEvaluator()
        self._corrections = half.corrections()
        self._keys = half.keys()
        self._share: Ring | None = None  # of the result, known after offline()
        self._result: NDArray[np.float64] | NDArray[np.int64] | None = None
        self._next = -1  # the request to be answered next
        self._closed = False

    @property
    def request_number(self) -> int:
        """The number of the request that was returned last."""
        return self._next

    def offline(self) -> bytes:
        """The offline frame: P1's masked shares of every gate. Needs no image; once."""
        self._expect(self._share is None, "The offline message was made before.")
        side = _ClientSide(self._opening, self._half)
        batch, shape = self._half.batch, self._plan.input_shape
        run = walk(self._plan, batch, side, image_mask(self._half.seed, batch, shape))
        try:
            next(run)
        except StopIteration as end:
            self._share = end.value
        binding = self._plan.digest() + self._half.deal_id
        return frame(Kind.OFFLINE, self._session_id, OFFLINE_STEP, [binding, *side.deltas])

    def share(self) -> bytes:
        """P1's share of the result, a secret: with it ``restore`` makes up for ``offline`` where
        another process has made the message, and P0 has it."""
        self._expect(self._share is not None, "The offline message comes first.")
        assert self._share is not None
        return words_to_bytes(self._share)

    def restore(self, share: bytes) -> None:
        """Go on behind an offline message of this half and session that was made before."""
        self._expect(self._share is None, "The offline message was made before.")
        width = () if self._plan.result == "label" else (self._plan.classes,)
        shape = (self._half.batch, *width)
        if len(share) != 4 * math.prod(shape):
            raise MalformedMessage("The share of the result has another size than its plan says.")
        self._share = np.frombuffer(share, dtype="<u4").reshape(shape)

    def first(self, image: NDArray[np.floating]) -> bytes:
        """Request 0: the masked image. ``image``: (N, C, H, W), as the plan and the deal say."""
        self._expect(self._share is not None, "The offline message comes first.")
        self._expect(self._next < 0, "The session has its image.")
        batch, shape = self._half.batch, self._plan.input_shape
        if image.shape != (batch, *shape):
            raise InvalidInput(f"The images are {image.shape}; {(batch, *shape)} are expected.")
        masked = encode(image, self._plan.activation_bits)
        masked -= image_mask(self._half.seed, batch, shape)
        self._next = 0
        return frame(Kind.REQUEST, self._session_id, 0, [words_to_bytes(masked)])

    def step(self, response: bytes) -> bytes | None:
        """The next request, or None when the response was the last one."""
        self._expect(self._next >= 0, "No request was sent.")
        self._expect(self._result is None, "The session has its result.")
        number, batch = self._next, self._half.batch
        size = response_payload(self._plan, batch, number)
        data = payload(response, Kind.RESPONSE, self._session_id, number, size)
        if number == len(self._gates):
            self._result = self._open(data)
            self._let_go()
            return None
        gate = self._gates[number]
        masked = Masked.parse(data, gate, batch * gate.count)
        try:
            answer = client_answer(
                gate,
                (self._half.seed, number),
                masked,
                self._corrections,
                self._keys,
                self._evaluator,
            )
        except BaseException:
            self.close()  # the keys have been used: the session is broken
            raise
        self._next = number + 1
        return frame(Kind.REQUEST, self._session_id, self._next, [answer.write(gate)])

    def result(self) -> NDArray[np.float64] | NDArray[np.int64]:
        """Scores, float64 (N, classes), or labels, int64 (N,)."""
        if self._result is None:
            raise UnexpectedMessage("The session has no result yet.")
        return self._result

    def _open(self, data: memoryview) -> NDArray[np.float64] | NDArray[np.int64]:
        assert self._share is not None
        total = np.frombuffer(data, dtype="<u4").reshape(self._share.shape) + self._share
        if self._plan.result == "scores":
            return decode(total, self._plan.scales()[-1])
        if (total >= self._plan.classes).any():
            raise MalformedMessage("The result is not a label of this model.")
        labels: NDArray[np.int64] = total.astype(np.int64)
        return labels

    def _expect(self, condition: bool, detail: str) -> None:
        if self._closed:
            raise UnexpectedMessage("The session is closed.", hint="Start a new one.")
        if not condition:
            raise UnexpectedMessage(detail)

    def close(self) -> None:
        """Drop all state but the result; the half is burnt."""
        self._closed = True
        self._let_go()

    def _let_go(self) -> None:
        self._share = None
        self._corrections.close()
        self._keys.close()
        self._half.close()

    def __repr__(self) -> str:
        return f"Client(<session, request {self._next}>)"


class _ClientSide:
    """P1's side of a walk, before the image exists: a gate only notes its delta."""

    def __init__(self, opening: PreparedOpening, half: Half) -> None:
        self._opening = opening
        self._half = half
        self.deltas: list[bytes] = []

    def public(self, values: Ring) -> Ring:
        return np.zeros_like(values)

    def narrow(self, x: Ring, low: int) -> Ring:
        return x >> np.uint32(low)

    def linear(self, op: Linear, x: Value, before: Shape, after: Shape) -> Value:
        """y1 = E * B + C1."""
        assert x is not None
        result = self._opening.apply(op.layer, x)
        result += result_mask(self._half.seed, op.layer, len(x), after)
        return result

    def gate(
        self, number: int, gate: Gate, inputs: Sequence[Value]
    ) -> Generator[bytes, memoryview, Sequence[Ring]]:
        known = [y for y in inputs if y is not None]
        delta, masks = client_prepare(gate, GateStreams(self._half.seed, number), known)
        self.deltas.extend(planes(values, gate.width) for values in delta)
        yield from ()
        return masks
