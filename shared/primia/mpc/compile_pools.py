"""A ReLU behind a pool joins the pool's last gate: a request less, for some comparisons more."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from primia.mpc.operations import Add, MaxPool, Operation, Relu
from primia.mpc.plan import Plan


def rectified(plan: Plan) -> Plan:
    """The plan with every exact ReLU that alone reads an exact pool in that pool."""
    ops: list[Operation] = []
    numbers = [0]  # of every value of the given plan: its number in the new one
    for op in plan.ops:
        if isinstance(op, Relu) and (pool := _pool(plan, op)):
            number = numbers[op.source]
            ops[number - 1] = replace(pool, source=numbers[pool.source], relu=True)
            numbers.append(number)
        else:
            ops.append(_renumbered(op, numbers))
            numbers.append(len(ops))
    return replace(plan, ops=tuple(ops))


def _pool(plan: Plan, relu: Relu) -> MaxPool | None:
    """The pool whose last gate can take this ReLU."""
    pool = plan.ops[relu.source - 1] if relu.source else None
    readers = Counter(source for op in plan.ops for source in op.sources)[relu.source]
    if not isinstance(pool, MaxPool) or readers > 1 or relu.coarse or pool.coarse:
        return None
    return pool if pool.gates(plan.shapes()[pool.source], plan.widths()[pool.source]) else None


def _renumbered(op: Operation, numbers: list[int]) -> Operation:
    if isinstance(op, Add):
        return replace(op, left=numbers[op.left], right=numbers[op.right])
    return replace(op, source=numbers[op.source])
