"""The opening of a model version's masked weights: E = W - A, sent once from P0 to P1.

A follows from a seed that P0 and the dealer know and P1 does not; E is uniform to P1. It goes from
P0 to P1 directly: with A, the dealer would learn W from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from primia.codec import Reader, Writer
from primia.errors import InvalidInput, MalformedMessage
from primia.mpc.masks import weight_mask
from primia.mpc.plan import Plan
from primia.mpc.weights import LayerWeights
from primia.prg import Seed
from primia.ring import Ring

MAGIC = b"PGMO"
VERSION = 1
DIGEST_BYTES = 32
HEADER_BYTES = 4 + 2 + 2 + DIGEST_BYTES


def opening_size(plan: Plan) -> int:
    """Exact bytes: a header, then E layer by layer."""
    return HEADER_BYTES + 4 * sum(math.prod(shape) for _, shape in plan.linear())


def write_opening(plan: Plan, weights: Mapping[str, LayerWeights], mask: Seed) -> bytes:
    """P0's message to P1, once per model version."""
    check_weights(plan, weights)
    writer = Writer().raw(MAGIC).u16(VERSION).u16(0).raw(plan.digest())
    for op, shape in plan.linear():
        weight = weights[op.layer].weight.view(np.uint32)
        masked = weight - weight_mask(mask, op.layer, shape)
        writer.raw(masked.astype("<u4", copy=False).tobytes())
    return writer.take()


def parse_opening(plan: Plan, data: bytes | memoryview) -> dict[str, Ring]:
    """E of every linear layer, read-only views on the message."""
    if len(data) != opening_size(plan):
        raise MalformedMessage(
            f"The masked weights have {len(data)} bytes; {opening_size(plan)} were expected."
        )
    reader = Reader(bytes(data[:HEADER_BYTES]))
    reader.expect(MAGIC, "an opening of masked weights")
    if reader.u16() != VERSION or reader.u16() != 0:
        raise MalformedMessage(f"Only openings of version {VERSION} are known.")
    if reader.raw(DIGEST_BYTES) != plan.digest():
        raise MalformedMessage("The masked weights belong to another plan.")
    words = np.frombuffer(data, dtype="<u4", offset=HEADER_BYTES)
    layers, at = {}, 0
    for op, shape in plan.linear():
        size = math.prod(shape)
        layers[op.layer] = words[at : at + size].reshape(shape)
        at += size
    return layers


def check_weights(plan: Plan, weights: Mapping[str, LayerWeights]) -> None:
    """The weights are exactly those of the plan, or ``InvalidInput``."""
    expected = {op.layer: shape for op, shape in plan.linear()}
    if set(weights) != set(expected):
        raise InvalidInput("The weights are not those of the plan's layers.")
    for layer, shape in expected.items():
        given = weights[layer]
        if given.weight.dtype != np.int32 or given.bias.dtype != np.int32:
            raise InvalidInput(f"The weights of {layer} are not int32.")
        if given.weight.shape != shape or given.bias.shape != shape[:1]:
            raise InvalidInput(f"The weights of {layer} have another shape than the plan says.")
