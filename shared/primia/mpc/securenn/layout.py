"""What the three roles agree on without a word: blocks, random streams, the gates of a plan."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from primia.errors import InvalidInput
from primia.mpc.operations import Convolution, Dense, MaxPool, Operation, Relu, Shape
from primia.mpc.plan import Plan
from primia.mpc.reduction import Reduction, reduction
from primia.mpc.securenn import ring64
from primia.mpc.securenn.ring64 import Words
from primia.prg import Seed, Stream
from primia.ring import Window

# Comparisons at a time: their bits, 512 KiB, stay in the cache, and a block is on its way while the
# next one is computed.
BLOCK = 1 << 13

# Images of a session: what an image takes is held for all of them at once.
MAX_BATCH = 64

CONVERSION, SIGN = "conversion", "sign"  # the two private comparisons of a gate


def check_batch(batch: int) -> None:
    if not 1 <= batch <= MAX_BATCH:
        raise InvalidInput(f"A batch has 1 to {MAX_BATCH} images, not {batch}.")


def blocks(count: int) -> Iterator[int]:
    """The sizes of the blocks of ``count`` comparisons."""
    for start in range(0, count, BLOCK):
        yield min(BLOCK, count - start)


def stream(seed: Seed, gate: int, name: str) -> Stream:
    return Stream(seed, f"securenn/gate {gate}/{name}")


# What a party was seen to hold: without any comparison, and for each of its widest step.
BASE_BYTES = 400_000_000
COMPARISON_BYTES = 600


@dataclass(frozen=True)
class Step:
    """A nonlinear step of a plan: comparisons of the whole batch, values that each selects."""

    count: int
    payloads: int = 1


def steps(plan: Plan, batch: int) -> Iterator[Step]:
    """The nonlinear steps in order, those of a label's tournament at the end."""
    shapes = plan.shapes()
    for op in plan.ops:
        for count in _counts(op, shapes[op.sources[0]]):
            yield Step(batch * count)
    if plan.result == "label":
        classes = plan.classes
        for level in reduction(classes, classes, 1, 0).levels:
            yield Step(batch * level.count, 2)


def memory_bytes(plan: Plan, batch: int) -> int:
    """About what a party holds at most: the libraries, and the widest step's comparisons."""
    widest = max((step.count for step in steps(plan, batch)), default=0)
    return BASE_BYTES + COMPARISON_BYTES * widest


def check_memory(plan: Plan, batch: int, limit: int) -> None:
    """Raises InvalidInput where a session would take more than ``limit`` bytes."""
    needed = memory_bytes(plan, batch)
    if needed > limit:
        raise InvalidInput(
            f"SecureNN would take {needed / 1e9:.1f} GB for a batch of {batch}; "
            f"{limit / 1e9:.1f} are allowed.",
            hint="Ask for fewer images at a time, or for the protocol fss.",
        )


def _counts(op: Operation, shape: Shape) -> Iterator[int]:
    if isinstance(op, Relu):
        yield math.prod(shape)
    elif isinstance(op, MaxPool):
        channels, height, _ = shape
        rows, columns = pool_trees(op, shape)
        yield from (channels * height * level.count for level in rows.levels)
        yield from (channels * len(rows.last) * level.count for level in columns.levels)
        if op.relu:
            yield math.prod(op.shape(shape))


def pool_trees(op: MaxPool, shape: Shape) -> tuple[Reduction, Reduction]:
    """Maxima of two along the rows, then along the columns (the gates of a plan take three)."""
    _, height, width = shape
    return (
        reduction(width, op.kernel[1], op.stride[1], op.padding[1]),
        reduction(height, op.kernel[0], op.stride[0], op.padding[0]),
    )


def window(op: Convolution | Dense) -> Window | None:
    if isinstance(op, Dense):
        return None
    return Window(op.stride, op.padding, op.groups)


def weight_mask(seed: Seed, op: Convolution | Dense, shape: Shape) -> Words:
    """A, of P0 and P2: one for each model version and layer."""
    return ring64.uniform(Stream(seed, f"securenn/weights/{op.layer}"), shape)


def value_mask(seed: Seed, value: int, shape: Shape) -> Words:
    """B, of P1 and P2: one for each value that a linear layer reads."""
    return ring64.uniform(Stream(seed, f"securenn/value {value}"), shape)


def product_mask(seed: Seed, op: Convolution | Dense, shape: Shape) -> Words:
    """C0, of P0 and P2: P0's share of A * B."""
    return ring64.uniform(Stream(seed, f"securenn/product/{op.layer}"), shape)
