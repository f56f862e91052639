"""What a role says and hears: steps that a protocol yields, and strict reading of what comes.

A protocol is a generator. It yields ``Send`` (answered at once: a driver queues it and never
waits), ``Receive`` (answered with exactly that many bytes of what this peer sent, in its order),
and ``Begin`` (nothing to carry).
All sizes follow from the public plan, so the bytes between two roles need no frames. Elements out
of range are ``MalformedMessage``.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from primia.errors import MalformedMessage
from primia.mpc.securenn.field import PRIME, Field
from primia.mpc.securenn.odd import MODULUS as ODD_MODULUS
from primia.mpc.securenn.ring64 import Words
from primia.prg import SEED_BYTES, Seed

OWNER, CLIENT, ASSISTANT = 0, 1, 2

T = TypeVar("T")


@dataclass(frozen=True, eq=False, repr=False)
class Send:
    """``data``: a contiguous array; its bytes travel as they lie in memory, little-endian."""

    peer: int
    data: NDArray[Any]


@dataclass(frozen=True)
class Receive:
    peer: int
    size: int


@dataclass(frozen=True)
class Begin:
    """The nonlinear step of this number begins: for whoever watches; answered with nothing."""

    gate: int


Step = Send | Receive | Begin
Talk = Generator[Step, memoryview, T]


def send(peer: int, *arrays: NDArray[Any]) -> Talk[None]:
    for array in arrays:
        yield Send(peer, np.ascontiguousarray(array))


def _receive(peer: int, dtype: str, shape: int | tuple[int, ...]) -> Talk[NDArray[Any]]:
    kind = np.dtype(dtype)
    data = yield Receive(peer, kind.itemsize * math.prod(np.atleast_1d(shape).tolist()))
    return np.frombuffer(data, kind).reshape(shape)


def receive_words(peer: int, shape: int | tuple[int, ...]) -> Talk[Words]:
    """Elements of Z_2^64."""
    return (yield from _receive(peer, "<u8", shape))


def receive_odd(peer: int, shape: int | tuple[int, ...]) -> Talk[Words]:
    """Elements of Z_(2^64 - 1)."""
    found = yield from _receive(peer, "<u8", shape)
    if (found == ODD_MODULUS).any():
        raise MalformedMessage("A share is no element of the ring of 2^64 - 1.")
    return found


def receive_field(peer: int, shape: int | tuple[int, ...]) -> Talk[Field]:
    """Elements of Z_67, a byte each."""
    found = yield from _receive(peer, "u1", shape)
    if int(found.max(initial=0)) >= PRIME:
        raise MalformedMessage(f"A share is no element of the field of {PRIME}.")
    return found


def send_seed(peer: int, seed: Seed) -> Talk[None]:
    yield from send(peer, np.frombuffer(seed.reveal(), np.uint8))


def receive_seed(peer: int) -> Talk[Seed]:
    """What two roles expand to the same randomness."""
    data = yield Receive(peer, SEED_BYTES)
    return Seed(bytes(data))
