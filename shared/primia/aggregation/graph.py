"""Who masks with whom in a round of many nodes: everybody, or some neighbours each.

Bell, Bonawitz, Gascón, Lepoint, Raykova, *Secure Single-Server Aggregation with (Poly)Logarithmic
Overhead* (CCS 2020), section 3: the nodes stand on a ring in an order that nobody chooses, and each
has the k/2 nodes before it and the k/2 behind it as neighbours (a Harary graph). It agrees masks
with them and deals shares of its secrets to them and to itself.

The order follows from the roster's digest, which covers fresh keys of every node: it is fixed once
all have advertised. Who tries many keys or leaves nodes out gets as many drawings of the order;
``SECRECY_BITS`` has room for 2^40 of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from math import comb

from primia.aggregation.terms import Assumed

SECRECY_BITS = 80
DELIVERY_BITS = 20


@dataclass(frozen=True, slots=True)
class Degree:
    """``neighbours``: k, even. ``threshold``: shares that give a node's secret. ``spread``: how
    many survivors any k/2 consecutive places of the ring must have."""

    neighbours: int
    threshold: int
    spread: int

    @property
    def window(self) -> int:
        return self.neighbours // 2


@lru_cache(maxsize=256)
def degree(nodes: int, assumed: Assumed) -> Degree | None:
    """The fewest neighbours that carry what is assumed; None where only all of them do.

    Of a random order, but for probability 2^-SECRECY_BITS: fewer than ``spread`` colluding nodes in
    any k/2 consecutive places, so that among the survivors there an honest one is left, and every
    honest survivor finds another within reach: they stay connected, whatever nodes the owner calls
    lost. And fewer than ``threshold`` colluding neighbours of any node. But for 2^-DELIVERY_BITS,
    the assumed losses leave both numbers reached, so that the round ends.
    """
    for neighbours in range(2, nodes - 1, 2):
        window = neighbours // 2
        spread = _least(nodes, nodes, assumed.colluding, window)
        threshold = _least(nodes, nodes - 1, assumed.colluding, neighbours)
        spared, shares_spared = window - spread, neighbours - threshold
        if (
            min(spared, shares_spared) >= 0
            and _rare(nodes, nodes, assumed.lost, window, spared + 1, DELIVERY_BITS)
            and _rare(nodes, nodes - 1, assumed.lost, neighbours, shares_spared + 1, DELIVERY_BITS)
        ):
            return Degree(neighbours, threshold, spread)
    return None


def _least(times: int, population: int, marked: int, drawn: int) -> int:
    """The least number of marked ones that is too rare to be met among ``drawn``."""
    return next(
        number
        for number in range(1, drawn + 2)
        if _rare(times, population, marked, drawn, number, SECRECY_BITS)
    )


def _rare(times: int, population: int, marked: int, drawn: int, least: int, bits: int) -> bool:
    """Whether ``times`` P[X ≥ least] ≤ 2^-bits, exactly; X hypergeometric."""
    tail = sum(
        comb(marked, met) * comb(population - marked, drawn - met)
        for met in range(least, min(marked, drawn) + 1)
    )
    return (times * tail) << bits <= comb(population, drawn)


@dataclass(frozen=True)
class Graph:
    """The neighbours of each node of a roster; ``degree`` None: all of them."""

    nodes: tuple[str, ...]
    context: bytes
    degree: Degree | None

    @cached_property
    def ring(self) -> tuple[str, ...]:
        return tuple(sorted(self.nodes, key=self._place))

    def _place(self, node: str) -> bytes:
        return sha256(b"primia/aggregation/ring/1\0" + self.context + node.encode()).digest()

    @cached_property
    def _holders(self) -> dict[str, tuple[str, ...]]:
        if self.degree is None:
            return dict.fromkeys(self.nodes, self.nodes)
        count, reach = len(self.ring), self.degree.window
        return {
            node: tuple(sorted(self.ring[(at + by) % count] for by in range(-reach, reach + 1)))
            for at, node in enumerate(self.ring)
        }

    def holders(self, node: str) -> tuple[str, ...]:
        """Who gets shares of the node's secrets: its neighbours and itself, sorted."""
        return self._holders[node]

    def near(self, node: str, nodes: Collection[str]) -> tuple[str, ...]:
        """Those of ``nodes`` that are the node itself or its neighbours, sorted."""
        return tuple(each for each in self.holders(node) if each in nodes)

    def least_spread(self, survivors: Collection[str]) -> int:
        """The fewest survivors on any k/2 consecutive places of the ring."""
        assert self.degree is not None
        return min(_windows([node in survivors for node in self.ring], self.degree.window))


def _windows(present: Sequence[bool], width: int) -> list[int]:
    around = [*present, *present[: width - 1]]
    return [sum(around[at : at + width]) for at in range(len(present))]
