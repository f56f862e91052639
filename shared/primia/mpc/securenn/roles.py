"""P0 and P1 of a session: ``prepare`` before the image exists, then ``run``; generators of steps.

A linear layer y = W * x: P0 has W, both have shares of x. Dealt: A (P0, once a model version), B
(P1), C0 + C1 = A * B; P0 sends E = W - A once a version, P1 sends F = x1 - B. Then
y0 = W * (x0 + F) + bias + C0 and y1 = E * B + C1, which P1 has before the image exists: one round
(algorithm 1 for this case, where one factor is whole at one party).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from primia.errors import InvalidInput, MalformedMessage
from primia.fixed_point import encode
from primia.mpc.operations import Convolution, Dense
from primia.mpc.plan import Plan
from primia.mpc.securenn import native
from primia.mpc.securenn.gates import Party
from primia.mpc.securenn.layout import check_batch, product_mask, value_mask
from primia.mpc.securenn.prepared import PreparedModel, PreparedOpening
from primia.mpc.securenn.ring64 import LinearMap64, MakeMap64, Words, from_signed
from primia.mpc.securenn.walk import walk
from primia.mpc.securenn.wire import (
    ASSISTANT,
    CLIENT,
    OWNER,
    Receive,
    Talk,
    receive_seed,
    receive_words,
    send,
    send_seed,
)
from primia.prg import Seed


class Owner:
    """P0. ``mask``: the seed of the weight masks A of this model version."""

    def __init__(self, model: PreparedModel, batch: int, mask: Seed) -> None:
        check_batch(batch)
        self._model = model
        self._batch = batch
        self._mask = mask
        self._party: Party | None = None
        self._unmasked: dict[int, Words] = {}  # x0 + F of the values that linear layers read

    @property
    def party(self) -> Party:
        assert self._party is not None, "prepare comes first"
        return self._party

    def prepare(self) -> Talk[None]:
        """Seeds; and E, if P1 has it not from an earlier session."""
        native.prepare()
        common = Seed.fresh()
        yield from send_seed(CLIENT, common)
        self._party = Party(OWNER, common, (yield from receive_seed(ASSISTANT)))
        wanted = bytes((yield Receive(CLIENT, 1)))
        if wanted not in (b"\0", b"\1"):
            raise MalformedMessage("The opening is asked for with 0 or 1.")
        if wanted == b"\1":
            for layer in self._model.opening(self._mask):
                yield from send(CLIENT, layer)

    def run(self) -> Talk[None]:
        plan = self._model.plan
        image = np.zeros((self._batch, *plan.input_shape), np.uint64)
        yield from send(CLIENT, (yield from walk(plan, self, image)))

    def linear(self, op: Convolution | Dense, x: Words) -> Talk[Words]:
        if op.source not in self._unmasked:
            self._unmasked[op.source] = x + (yield from receive_words(CLIENT, x.shape))
        y = self._model.apply(op.layer, self._unmasked[op.source])
        y += product_mask(self.party.dealt, op, y.shape)
        return y


class Client:
    """P1. ``opening``: E, if this node has it; else ``linear_map`` prepares what comes."""

    def __init__(
        self,
        plan: Plan,
        batch: int,
        opening: PreparedOpening | None = None,
        linear_map: MakeMap64 = LinearMap64,
    ) -> None:
        check_batch(batch)
        if opening is not None and opening.plan != plan:
            raise InvalidInput("The masked weights are those of another plan.")
        self._plan = plan
        self._batch = batch
        self._opening = opening
        self._linear_map = linear_map
        self._party: Party | None = None
        self._shares: dict[str, Words] = {}  # y1 of every linear layer
        self._sent = set[int]()

    @property
    def party(self) -> Party:
        assert self._party is not None, "prepare comes first"
        return self._party

    @property
    def opening(self) -> PreparedOpening:
        """For the next session of this model version."""
        assert self._opening is not None, "prepare comes first"
        return self._opening

    def prepare(self) -> Talk[None]:
        native.prepare()
        common = yield from receive_seed(OWNER)
        self._party = Party(CLIENT, common, (yield from receive_seed(ASSISTANT)))
        yield from send(OWNER, np.array([self._opening is None], np.uint8))
        if self._opening is None:
            self._opening = yield from self._receive_opening()
        shapes = self._plan.shapes()
        for op, _ in self._plan.linear():
            b = value_mask(self.party.dealt, op.source, (self._batch, *shapes[op.source]))
            y = self._opening.apply(op.layer, b)
            y += yield from receive_words(ASSISTANT, y.shape)
            self._shares[op.layer] = y

    def _receive_opening(self) -> Talk[PreparedOpening]:
        layers = {}
        for op, shape in self._plan.linear():
            layers[op.layer] = yield from receive_words(OWNER, shape)
        return PreparedOpening(self._plan, layers, self._linear_map)

    def run(self, images: NDArray[np.floating]) -> Talk[NDArray[np.float64] | NDArray[np.int64]]:
        """Images (N, C, H, W) to scores (N, classes), or labels (N,)."""
        if images.shape != (self._batch, *self._plan.input_shape):
            raise InvalidInput(f"The images are {images.shape}: not what the session is for.")
        encoded = from_signed(encode(images, self._plan.activation_bits).view(np.int32))
        share = yield from walk(self._plan, self, encoded)
        total = (share + (yield from receive_words(OWNER, share.shape))).view(np.int64)
        if self._plan.result == "scores":
            return np.asarray(total * 2.0 ** -self._plan.scales()[-1], np.float64)
        if ((total < 0) | (total >= self._plan.classes)).any():
            raise MalformedMessage("The result is not a label of this model.")
        return np.asarray(total)

    def linear(self, op: Convolution | Dense, x: Words) -> Talk[Words]:
        if op.source not in self._sent:
            b = value_mask(self.party.dealt, op.source, x.shape)
            yield from send(OWNER, x - b)
            self._sent.add(op.source)
        return self._shares.pop(op.layer)
