"""The dealer D: correlated randomness for a plan, made before any image exists.

D walks the plan with what P1's seed tells of P1's shares and writes, layer by layer, what the
parties' seeds cannot give (``primia.mpc.material`` lists it). Linear layers go by groups of images,
gates by blocks of results, and shares are expanded where they are read (``primia.mpc.deferred``):
memory grows neither with the plan's depth nor with the batch. D learns shapes only and takes no
part online; it never imports a party's code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from primia.errors import InvalidInput
from primia.fss.geometry import blocks
from primia.fss.kernel import Bits, KeyBlock, Words
from primia.fss.kernel import Generator as KeyGenerator
from primia.fss.kernels import generator as kernel
from primia.mpc.deferred import Deferred
from primia.mpc.gate_shape import Gate
from primia.mpc.masks import (
    GateStreams,
    below_sign,
    compared_mask,
    gate_mask,
    image_mask,
    ones,
    result_mask,
    sign,
    weight_mask,
    window,
)
from primia.mpc.material import (
    ID_BYTES,
    MAX_BATCH,
    PARTS,
    Manifest,
    Part,
    header,
    padding,
    part_size,
)
from primia.mpc.operations import Linear, Shape
from primia.mpc.plan import Plan
from primia.mpc.selection import BITS, Item, compared_lanes, dealt, factors
from primia.mpc.sinks import HashedSink, Sinks, pipeline
from primia.mpc.walk import walk
from primia.prg import SEED_BYTES, Seed
from primia.ring import LinearMap, MakeMap, Ring

# Values of a linear layer, read or written, that are worked on at a time.
_GROUP = 1 << 18


def deal(
    plan: Plan,
    batch: int,
    mask: Seed,
    deal_id: bytes,
    sinks: Sinks,
    *,
    root: Seed | None = None,
    generator: KeyGenerator | None = None,
    linear_map: MakeMap = LinearMap,
) -> Manifest:
    """Deal for one session of ``batch`` images; half i is sinks.p<i> followed by sinks.common.

    ``mask``: the model version's seed of A, known to P0. ``root``: for reproducible vectors; else
    fresh. Writes exactly ``part_size`` bytes to each sink, in order.
    """
    if not 1 <= batch <= MAX_BATCH:
        raise InvalidInput(f"A batch has 1 to {MAX_BATCH} images, not {batch}.")
    if len(deal_id) != ID_BYTES:
        raise InvalidInput(f"A deal's identifier has {ID_BYTES} bytes.")
    root = root or Seed.fresh()
    seeds = root.derive("p0"), root.derive("p1")
    secrets = {"p0": seeds[0].reveal(), "p1": seeds[1].reveal(), "common": bytes(SEED_BYTES)}
    image = Deferred.seeded(
        lambda first, count: image_mask(seeds[1], count, plan.input_shape, first),
        plan.input_shape,
    )
    with pipeline() as through:
        out = {
            part: HashedSink(sink, header(part, plan, batch, deal_id, secrets[part]), through)
            for part, sink in sinks.by_part().items()
        }
        dealer = _Dealer(batch, mask, seeds, out, generator or kernel(), linear_map)
        for _ in walk(plan, batch, dealer, image):
            raise AssertionError("the dealer exchanges no messages")
        for part in ("p0", "p1"):
            out[part].write(bytes(padding(out[part].size)))
        through.finish()
    for part in PARTS:
        assert out[part].size == part_size(plan, batch, part), "the sizes follow from the plan"
    return Manifest(**{part: sink.digest() for part, sink in out.items()})


class _Dealer:
    """The dealer's side of a walk: P1's shares as far as P1's seed tells them."""

    def __init__(
        self,
        batch: int,
        mask: Seed,
        seeds: tuple[Seed, Seed],
        out: Mapping[Part, HashedSink],
        generator: KeyGenerator,
        linear_map: MakeMap,
    ) -> None:
        self._batch = batch
        self._mask = mask
        self._seeds = seeds
        self._out = out
        self._generator = generator
        self._linear_map = linear_map

    def public(self, values: Ring) -> Deferred:
        shape = values.shape[1:]
        return Deferred.seeded(lambda _, count: np.zeros((count, *shape), np.uint32), shape)

    def narrow(self, x: Ring, low: int) -> Ring:
        return x >> np.uint32(low)

    def linear(self, op: Linear, x: Deferred | None, before: Shape, after: Shape) -> None:
        """C0 = A * B - C1. P1's share of the result depends on E, which D does not know."""
        assert x is not None, "the plan lets linear layers read dealt values only"
        weight = weight_mask(self._mask, op.layer, op.weight_shape(before))
        times = self._linear_map(weight, window(op))
        size = max(1, _GROUP // max(x.size, math.prod(before), math.prod(after)))
        for first in range(0, self._batch, size):
            count = min(size, self._batch - first)
            product = times(x.part(first, count))
            product -= result_mask(self._seeds[1], op.layer, count, after, first)
            self._out["p0"].words(product)

    def gate(
        self,
        number: int,
        gate: Gate,
        inputs: Sequence[Deferred | None],
    ) -> Generator[bytes, memoryview, Sequence[Deferred]]:
        count = self._batch * gate.count
        p0, p1 = (GateStreams(seed, number) for seed in self._seeds)
        for start, stop in blocks(count):
            block = deal_block(gate, stop - start, p0, p1, self._generator)
            for part, corrections in zip(PARTS[:2], block.corrections, strict=True):
                for words in corrections:
                    self._out[part].words(words)
            for keys in block.keys:
                self._out["common"].array(keys)
        yield from ()
        return [self._fresh(number, gate, payload) for payload in range(gate.payloads)]

    def _fresh(self, number: int, gate: Gate, payload: int) -> Deferred:
        """P1's share of what a gate selects."""
        seed, each = self._seeds[1], gate.count
        return Deferred.seeded(
            lambda first, count: gate_mask(seed, number, payload, first * each, count * each),
            (each,),
        )


@dataclass(frozen=True, eq=False, repr=False)
class DealtBlock:
    """Each party's corrections in their order, (count,) each, and the keys of each comparison."""

    corrections: tuple[list[Ring], list[Ring]]
    keys: list[NDArray[np.uint8]]


def deal_block(
    gate: Gate, count: int, p0: GateStreams, p1: GateStreams, generator: KeyGenerator
) -> DealtBlock:
    """One block of a gate: what the two parties' streams of it do not give."""
    shares = [p1.words("r", count, lane) for lane in range(gate.lanes)]
    masks = [(p0.words("r", count, i) + r1) & ones(gate.width) for i, r1 in enumerate(shares)]
    keys = []
    for number, r in enumerate(compared_lanes(gate, masks)):
        roots = p0.roots(count, number), p1.roots(count, number)
        keys.append(_keys(gate, r, roots, generator))
    hidden = {
        bit: (p0.bits("c", count, number) ^ p1.bits("c", count, number)).astype(np.uint32)
        for number, bit in enumerate(BITS[gate.ways])
    }
    values = _values(gate, masks, hidden)

    def less(item: Item, other: GateStreams) -> Ring:
        share = shares[item.lane] if item.name == "r" else other.words(item.name, count, item.lane)
        return values(item) - share

    corrections = (
        [less(item, p1) for item in dealt(gate, 0)],
        [less(item, p0) for item in dealt(gate, 1)],
    )
    return DealtBlock(corrections, keys)


def _values(gate: Gate, masks: list[Ring], hidden: dict[str, Ring]) -> Callable[[Item], Ring]:
    """What the parties share of each item, (count,). ``hidden``: c by its bit."""
    products = {"": np.ones(len(masks[0]), dtype=np.uint32)}
    for factor in factors(gate):
        products[factor] = math.prod((hidden[bit] for bit in factor), start=products[""])

    def value(item: Item) -> Ring:
        if item.times == "r":
            return products[item.factor] * masks[item.lane]
        if item.times == "mu":
            wrapped = sign(gate, masks[item.lane]) << np.uint32(gate.width)
            return products[item.factor] * wrapped
        return products[item.factor]

    return value


def _keys(
    gate: Gate, r: Ring, roots: tuple[Words, Words], generator: KeyGenerator
) -> NDArray[np.uint8]:
    """Keys of 1 xor msb(r') xor [x < low(r')] with the compared bits r' of r."""
    key, count = gate.key, len(r)
    keys = np.empty(key.block_bytes(count), dtype=np.uint8)
    keys[len(keys) - key.padding(count) :] = 0
    bits = compared_mask(gate, r)
    constant: Bits = (1 ^ (bits >> np.uint32(key.domain_bits))).astype(np.uint8)
    out = KeyBlock.view(key, count, keys)
    generator.generate(key, below_sign(key, bits), constant, roots, out)
    return keys
