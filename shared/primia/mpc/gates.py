"""The arithmetic of one nonlinear gate: what P0 and P1 compute on their shares, without messages.

For each payload y = y0 + y1 and its mask r = r0 + r1 in Z_2^n, with b = [first payload >= 0]:
1. P1, offline: delta = y1 + r1.                                     -> P0
2. P0: v = y0 + r0 + delta = y + r, its share b0 of b from v;
   v, d = b0 xor c.                                                  -> P1
3. P1: b1 from v; e = b1 xor c'; for j = 0, 1
   M_j = (j xor b1) (v + w1) + (1 - 2j)(1 - 2e) [c'w0]_1 - B';
   e, N_j = M_j + k_(j xor d).                                       -> P0
4. P0: N_b0 - k_c + b0 w0 + (1 - 2 b0)(e w0 + (1 - 2e) [c'w0]_0), which is b y - B'.

w_i = g mu_i - rho_i with g = 1 - msb(v): -r, and 2^n where v wrapped around, so that the result
stands in Z_2^32. Where it stays in Z_2^n, rho_i = r_i and there is no mu. Everything works block by
block, so that it stays in the cache. Arrays are uint32; of numbers of Z_2^n the bits above n mean
nothing, and are cleared before they are compared or sent. Signs are negatives mod 2^32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from primia.fss.geometry import blocks
from primia.fss.kernel import Bits, Evaluator, KeyBlock, Words
from primia.mpc.frames import Choices, Masked
from primia.mpc.masks import GateStreams, below_sign, compared, ones, sign
from primia.mpc.material import Cursor
from primia.mpc.operations import Gate
from primia.prg import Seed
from primia.ring import Ring

_ONE = np.uint32(1)


def client_prepare(
    gate: Gate, streams: GateStreams, inputs: Sequence[Ring]
) -> tuple[Ring, list[Ring]]:
    """Step 1: delta, (payloads, count), and P1's shares of the results, B'."""
    count = len(inputs[0])
    delta = np.stack([y1 + streams.words("r", count, p) for p, y1 in enumerate(inputs)])
    delta &= ones(gate.width)
    return delta, [streams.words("mask", count, p) for p in range(gate.payloads)]


def server_open(
    gate: Gate,
    seed: tuple[Seed, int],
    inputs: Sequence[Ring],
    delta: Ring,
    keys: Cursor,
    evaluator: Evaluator,
) -> tuple[Masked, Bits]:
    """Step 2: the response, and P0's share b0 of the comparison bits, (count,)."""
    count, streams = delta.shape[1], GateStreams(*seed)
    values = np.array(delta)
    shares = np.empty(count, dtype=np.uint8)
    choice = np.empty(count, dtype=np.uint8)
    for payload, y0 in enumerate(inputs):
        values[payload] += y0
    for start, stop in blocks(count):
        size = stop - start
        for payload in range(gate.payloads):
            values[payload, start:stop] += streams.words("r", size, payload)
        values[:, start:stop] &= ones(gate.width)
        roots = streams.roots(size)
        shares[start:stop] = _compare(gate, 0, values[0, start:stop], roots, keys, evaluator)
        choice[start:stop] = streams.bits("choice", size)
    return Masked(values, shares ^ choice), shares


def client_answer(
    gate: Gate, seed: tuple[Seed, int], masked: Masked, keys: Cursor, evaluator: Evaluator
) -> Choices:
    """Step 3."""
    count, streams = len(masked.bits), GateStreams(*seed)
    pairs = np.empty((gate.payloads, 2, count), dtype=np.uint32)
    hidden = np.empty(count, dtype=np.uint8)
    for start, stop in blocks(count):
        values, d = masked.values[:, start:stop], masked.bits[start:stop]
        roots = streams.roots(stop - start)
        b1 = _compare(gate, 1, values[0], roots, keys, evaluator)
        e = b1 ^ streams.bits("flag", stop - start)
        hidden[start:stop] = e
        for payload in range(gate.payloads):
            pair = _client_pair(gate, streams, payload, values, b1, e)
            _mask_pair(pair, d, streams, payload, pairs[payload, :, start:stop])
    return Choices(pairs, hidden)


def _client_pair(
    gate: Gate, streams: GateStreams, payload: int, values: Ring, b1: Bits, e: Bits
) -> tuple[Ring, Ring]:
    """M_0 and M_1 of one payload."""
    count = len(b1)
    r1 = streams.words("r", count, payload)
    if gate.widen:
        g = _ONE - sign(gate, values[0])
        w1 = g * streams.words("mu", count) - r1
        crossed = g * streams.words("flag_mu", count) - streams.words("flag_rho", count)
    else:
        w1 = np.negative(r1)
        crossed = np.negative(streams.words("flag_rho", count, payload))
    chosen = values[payload] + w1
    crossed *= _sign(e)
    mask = streams.words("mask", count, payload)
    picked = chosen * b1
    return picked + crossed - mask, chosen - picked - crossed - mask


def _mask_pair(
    pair: tuple[Ring, Ring], d: Bits, streams: GateStreams, payload: int, out: Ring
) -> None:
    """N_j = M_j + k_(j xor d)."""
    pads = [streams.words(f"pad{j}", len(d), payload) for j in (0, 1)]
    swap = (pads[0] ^ pads[1]) * d
    np.add(pair[0], pads[0] ^ swap, out=out[0])
    np.add(pair[1], pads[1] ^ swap, out=out[1])


def server_close(
    gate: Gate,
    seed: tuple[Seed, int],
    masked: Masked,
    shares: Bits,
    choices: Choices,
    corrections: Cursor,
) -> list[Ring]:
    """Step 4: P0's shares of the results, (count,) a payload."""
    count, streams = len(shares), GateStreams(*seed)
    results = np.empty((gate.payloads, count), dtype=np.uint32)
    for start, stop in blocks(count):
        b0, e = shares[start:stop], choices.bits[start:stop]
        g = _ONE - sign(gate, masked.values[0, start:stop])
        for payload in range(gate.payloads):
            w0, crossed = _server_words(gate, streams, payload, g, corrections)
            pad = corrections.words(stop - start)
            pair = choices.pairs[payload, :, start:stop]
            total = np.where(b0, pair[1], pair[0]) - pad
            total += w0 * b0
            total += _sign(b0) * (w0 * e + _sign(e) * crossed)
            results[payload, start:stop] = total
    return list(results)


def _server_words(
    gate: Gate, streams: GateStreams, payload: int, g: Ring, corrections: Cursor
) -> tuple[Ring, Ring]:
    """w0 and [c'w0]_0 of one payload."""
    count = len(g)
    if not gate.widen:
        crossed = np.negative(corrections.words(count))
        return np.negative(streams.words("r", count, payload)), crossed
    rho, mu, flag_rho, flag_mu = (corrections.words(count) for _ in range(4))
    return g * mu - rho, g * flag_mu - flag_rho


def _compare(
    gate: Gate, party: int, values: Ring, roots: Words, keys: Cursor, evaluator: Evaluator
) -> Bits:
    """This party's share of b = 1 xor msb(v') xor msb(r') xor [low(v') < low(r')].

    P0 adds msb(v'); the dealer has put 1 xor msb(r') into the key.
    """
    key = gate.key
    bits = compared(gate, values)
    block = KeyBlock.view(key, len(values), keys.take(key.block_bytes(len(values))))
    share = evaluator.evaluate(key, party, below_sign(key, bits), roots, block)
    if party == 0:
        share ^= (bits >> np.uint32(key.domain_bits)).astype(np.uint8)
    return share


def _sign(bit: Bits) -> Ring:
    """1 - 2 bit, mod 2^32."""
    result: Ring = _ONE - (bit.astype(np.uint32) << _ONE)
    return result
