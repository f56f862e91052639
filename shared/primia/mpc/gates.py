"""The arithmetic of one nonlinear gate: what P0 and P1 compute on their shares, without messages.

For each opened value y = y0 + y1 and its mask r = r0 + r1 in Z_2^n, and for each comparison's bit
b = b0 xor b1 and its mask c = c0 xor c1:
1. P1, offline: delta = y1 + r1.                                     -> P0
2. P0: v = y0 + r0 + delta = y + r, its shares b0 of the bits from v;
   v, d = b0 xor c0.                                                 -> P1
3. P1: b1 from v; e = b1 xor c1; i = d xor e = b xor c;
   m = its share of what is selected (``selection``), less B';
   e, m.                                                             -> P0
4. P0: i = d xor e; m and its own share: what is selected, less B'.

A gate compares y, or of three ways u, v and u - v, whose mask is the difference of theirs.
Everything works block by block, so that it stays in the cache. Arrays are uint32; of numbers of
Z_2^n the bits above n mean nothing, and are cleared before they are compared or sent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from primia.fss.geometry import blocks
from primia.fss.kernel import Bits, Evaluator, KeyBlock
from primia.mpc.frames import Answer, Masked
from primia.mpc.gate_shape import Gate
from primia.mpc.masks import GateStreams, below_sign, compared, ones
from primia.mpc.material import Cursor
from primia.mpc.selection import Item, Shares, compared_lanes, dealt, selected
from primia.prg import Seed
from primia.ring import Ring


def client_prepare(
    gate: Gate, streams: GateStreams, inputs: Sequence[Ring]
) -> tuple[Ring, list[Ring]]:
    """Step 1: delta, (lanes, count), and P1's shares of the results, B'."""
    count = len(inputs[0])
    delta = np.stack([y1 + streams.words("r", count, lane) for lane, y1 in enumerate(inputs)])
    delta &= ones(gate.width)
    return delta, [streams.words("mask", count, payload) for payload in range(gate.payloads)]


def server_open(
    gate: Gate,
    seed: tuple[Seed, int],
    inputs: Sequence[Ring],
    delta: Ring,
    keys: Cursor,
    evaluator: Evaluator,
) -> Masked:
    """Step 2: the response."""
    count, streams = delta.shape[1], GateStreams(*seed)
    values = np.array(delta)
    hidden = np.empty((gate.bits, count), dtype=np.uint8)
    for lane, y0 in enumerate(inputs):
        values[lane] += y0
    for start, stop in blocks(count):
        block = values[:, start:stop]
        for lane in range(gate.lanes):
            block[lane] += streams.words("r", stop - start, lane)
        block &= ones(gate.width)
        hidden[:, start:stop] = _compare(gate, 0, block, streams, keys, evaluator)
    return Masked(values, hidden)


def client_answer(
    gate: Gate,
    seed: tuple[Seed, int],
    masked: Masked,
    corrections: Cursor,
    keys: Cursor,
    evaluator: Evaluator,
) -> Answer:
    """Step 3."""
    count, streams = masked.values.shape[1], GateStreams(*seed)
    answers = np.empty((gate.payloads, count), dtype=np.uint32)
    hidden = np.empty((gate.bits, count), dtype=np.uint8)
    for start, stop in blocks(count):
        size, block = stop - start, masked.values[:, start:stop]
        e = _compare(gate, 1, block, streams, keys, evaluator)
        hidden[:, start:stop] = e
        bits = masked.bits[:, start:stop] ^ e
        chosen = selected(gate, 1, block, bits, _shares(gate, 1, streams, corrections, size))
        for payload, share in enumerate(chosen):
            mask = streams.words("mask", size, payload)
            np.subtract(share, mask, out=answers[payload, start:stop])
    return Answer(answers, hidden)


def server_close(
    gate: Gate, seed: tuple[Seed, int], masked: Masked, answer: Answer, corrections: Cursor
) -> list[Ring]:
    """Step 4: P0's shares of the results, (count,) a payload."""
    count, streams = masked.values.shape[1], GateStreams(*seed)
    results = np.empty((gate.payloads, count), dtype=np.uint32)
    for start, stop in blocks(count):
        part = slice(start, stop)
        shares = _shares(gate, 0, streams, corrections, stop - start)
        bits = masked.bits[:, part] ^ answer.bits[:, part]
        chosen = selected(gate, 0, masked.values[:, part], bits, shares)
        for payload, share in enumerate(chosen):
            np.add(share, answer.values[payload, part], out=results[payload, part])
    return list(results)


def _shares(
    gate: Gate, party: int, streams: GateStreams, corrections: Cursor, count: int
) -> Shares:
    """A party's shares: those that were dealt to it, the others from its seed."""
    given = frozenset(dealt(gate, party))

    def share(item: Item) -> Ring:
        if item in given:
            return corrections.words(count)
        return streams.words(item.name, count, item.lane)

    return share


def _compare(
    gate: Gate,
    party: int,
    values: Ring,
    streams: GateStreams,
    keys: Cursor,
    evaluator: Evaluator,
) -> Bits:
    """This party's shares of the bits b, each xor its half of c; (comparisons, count).

    b = 1 xor msb(v') xor msb(r') xor [low(v') < low(r')]. P0 adds msb(v'); the dealer has put
    1 xor msb(r') into the key.
    """
    key, count = gate.key, values.shape[1]
    hidden = np.empty((gate.bits, count), dtype=np.uint8)
    for number, lane in enumerate(compared_lanes(gate, list(values))):
        seen = compared(gate, lane)
        block = KeyBlock.view(key, count, keys.take(key.block_bytes(count)))
        roots = streams.roots(count, number)
        share = evaluator.evaluate(key, party, below_sign(key, seen), roots, block)
        if party == 0:
            share ^= (seen >> np.uint32(key.domain_bits)).astype(np.uint8)
        np.bitwise_xor(share, streams.bits("c", count, number), out=hidden[number])
    return hidden
