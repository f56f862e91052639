"""P2, the crypto provider, online: deals shares for each gate and helps with two comparisons in it.

P2 sees sums masked with r and differences masked and in random order; it knows the x of the second
comparison, which it drew, and the masks A, B, a, b that it dealt, whose sums with values never
reach it. It imports nothing of P0's and P1's side.
"""

from __future__ import annotations

import numpy as np

from primia.mpc.plan import Plan
from primia.mpc.securenn import field, odd, ring64
from primia.mpc.securenn.compare import found_zero
from primia.mpc.securenn.field import Field
from primia.mpc.securenn.layout import (
    CONVERSION,
    SIGN,
    Step,
    blocks,
    check_batch,
    product_mask,
    steps,
    stream,
    value_mask,
    weight_mask,
    window,
)
from primia.mpc.securenn.ring64 import LinearMap64, MakeMap64, Words
from primia.mpc.securenn.wire import (
    CLIENT,
    OWNER,
    Talk,
    receive_field,
    receive_words,
    send,
    send_seed,
)
from primia.prg import Seed, Stream


class Assistant:
    """P2 in one session: ``prepare`` before the image exists, then ``run``.

    ``mask``: the model version's seed of the weight masks A, which P0 has too, and P1 never.
    """

    def __init__(
        self, plan: Plan, batch: int, mask: Seed, linear_map: MakeMap64 = LinearMap64
    ) -> None:
        check_batch(batch)
        self._plan = plan
        self._batch = batch
        self._mask = mask
        self._linear_map = linear_map
        self._seeds = (Seed.fresh(), Seed.fresh())

    def prepare(self) -> Talk[None]:
        """A seed to each; to P1, for each linear layer, its share C1 = A * B - C0."""
        for party in (OWNER, CLIENT):
            yield from send_seed(party, self._seeds[party])
        shapes = self._plan.shapes()
        for op, shape in self._plan.linear():
            weight = weight_mask(self._mask, op, shape)
            value = (self._batch, *shapes[op.source])
            product = self._linear_map(weight, window(op))(
                value_mask(self._seeds[CLIENT], op.source, value)
            )
            product -= product_mask(self._seeds[OWNER], op, product.shape)
            yield from send(CLIENT, product)

    def run(self) -> Talk[None]:
        for number, step in enumerate(steps(self._plan, self._batch)):
            yield from Helper(self._seeds, number, step).run()


class Helper:
    """P2 in one gate."""

    def __init__(self, seeds: tuple[Seed, Seed], gate: int, step: Step) -> None:
        self._seeds = seeds
        self._gate = gate
        self._step = step

    def run(self) -> Talk[None]:
        yield from self.deal()
        yield from self.convert()
        yield from self.sign()

    def deal(self) -> Talk[None]:
        """What depends on no value: P1's shares of the bits of x, of its lowest bit, and of the
        two products (``gates.take_deal``). Both shares of x, a and b come from the seeds."""
        count = self._step.count
        x = odd.add(*(odd.uniform(self._stream(party, "x"), count) for party in (0, 1)))
        yield from self._share_bits(x, self._bit_masks(f"{SIGN} bits"))
        yield from self._share_words("lowest", x & np.uint64(1))
        for name, payloads in (("sign", 1), ("selection", self._step.payloads)):
            a = self._sum(f"{name} a", (payloads, count))
            b = self._sum(f"{name} b", count)
            yield from self._share_words(f"{name} ab", a * b)

    def convert(self) -> Talk[None]:
        """P2's part of algorithm 4."""
        count = self._step.count
        masks = self._bit_masks(f"{CONVERSION} bits")  # while the shares are on their way
        first = yield from receive_words(OWNER, count)
        second = yield from receive_words(CLIENT, count)
        x = first + second
        yield from self._share_bits(x, masks)
        yield from self._share_odd("delta", (x < first).astype(np.uint8))
        yield from self._share_odd("eta", (yield from self._compare()))

    def sign(self) -> Talk[None]:
        """P2's part of algorithm 5, but for what it has dealt."""
        yield from self._share_words("beta", (yield from self._compare()))

    def _compare(self) -> Talk[Field]:
        """Step 8 of algorithm 3: (count,), 0 or 1."""
        found = []
        for size in blocks(self._step.count):
            first = yield from receive_field(OWNER, (field.WIDTH, size))
            second = yield from receive_field(CLIENT, (field.WIDTH, size))
            found.append(found_zero(first, second))
        return np.concatenate(found)

    def _bit_masks(self, name: str) -> list[Field]:
        """P0's shares of bits, block by block."""
        source = self._stream(OWNER, name)
        return [field.uniform(source, (field.WIDTH, size)) for size in blocks(self._step.count)]

    def _share_bits(self, values: Words, masks: list[Field]) -> Talk[None]:
        start = 0
        for mask in masks:
            size = mask.shape[1]
            bits = field.bits_of(values[start : start + size])
            yield from send(CLIENT, field.subtract(bits, mask))
            start += size

    def _share_odd(self, name: str, bits: Field) -> Talk[None]:
        mask = odd.uniform(self._stream(OWNER, name), len(bits))
        yield from send(CLIENT, odd.subtract(bits.astype(np.uint64), mask))

    def _share_words(self, name: str, values: Words | Field) -> Talk[None]:
        mask = ring64.uniform(self._stream(OWNER, name), values.shape)
        yield from send(CLIENT, values.astype(np.uint64) - mask)

    def _sum(self, name: str, shape: int | tuple[int, int]) -> Words:
        """What is drawn as two shares, each from its party's seed."""
        first, second = (ring64.uniform(self._stream(party, name), shape) for party in (0, 1))
        return first + second

    def _stream(self, party: int, name: str) -> Stream:
        return stream(self._seeds[party], self._gate, name)
