"""The terms of a round, all public: which round it is, what vector is summed, how many must remain.

Nodes are identified by their names: 1 to 64 bytes of printable UTF-8 without spaces. Their order
in a round is the order of the names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from primia.codec import Reader, Writer
from primia.errors import InvalidInput, MalformedMessage

GroupName = Literal["parameters", "buffers"]

RUN_ID_BYTES = 16
MAX_NODE_BYTES = 64
# Below 253 nodes the rounding of all of them fits beside the sum in 32 bits (see quantise), and
# every node has a point of its own in Shamir's sharing.
MAX_NODES = 250
MIN_NODES = 2
MAX_VALUES = 1 << 31
MAX_SAMPLES = 1 << 31


@dataclass(frozen=True, slots=True)
class RoundId:
    """One round of one run; keys, masks, envelopes and signatures are bound to it."""

    run: bytes
    number: int

    def __post_init__(self) -> None:
        if len(self.run) != RUN_ID_BYTES:
            raise InvalidInput(f"A run's identifier has {RUN_ID_BYTES} bytes, not {len(self.run)}.")
        if not 0 <= self.number < 1 << 32:
            raise InvalidInput(f"A round's number lies between 0 and 2^32, not {self.number}.")

    def write(self, writer: Writer) -> Writer:
        return writer.raw(self.run).u32(self.number)

    @classmethod
    def read(cls, reader: Reader) -> RoundId:
        return cls(reader.raw(RUN_ID_BYTES), reader.u32())


@dataclass(frozen=True, slots=True)
class Assumed:
    """What a sparse round must withstand: so many nodes that collude with the owner, and so many
    that are lost on the way."""

    colluding: int
    lost: int

    def __post_init__(self) -> None:
        if not (0 <= self.colluding < MAX_NODES and 0 <= self.lost < MAX_NODES):
            raise InvalidInput(
                f"{self.colluding} colluding and {self.lost} lost nodes cannot be assumed."
            )

    @classmethod
    def shares(cls, nodes: int, colluding: float, lost: float) -> Assumed:
        """From shares of the nodes, rounded up."""
        return cls(math.ceil(nodes * colluding), math.ceil(nodes * lost))


@dataclass(frozen=True, slots=True)
class Groups:
    """The vector is ``parameters`` values followed by ``buffers`` values; each group has its own
    fixed-point exponent."""

    parameters: int
    buffers: int

    def __post_init__(self) -> None:
        if self.parameters < 0 or self.buffers < 0 or not 1 <= self.size <= MAX_VALUES:
            raise InvalidInput(
                f"A vector of {self.parameters} parameters and {self.buffers} buffer values "
                f"cannot be aggregated: between 1 and {MAX_VALUES} values are accepted."
            )

    @property
    def size(self) -> int:
        return self.parameters + self.buffers

    def spans(self) -> Iterator[tuple[GroupName, slice]]:
        yield "parameters", slice(0, self.parameters)
        yield "buffers", slice(self.parameters, self.size)

    def write(self, writer: Writer) -> Writer:
        return writer.u64(self.parameters).u64(self.buffers)

    @classmethod
    def read(cls, reader: Reader) -> Groups:
        try:
            return cls(reader.u64(), reader.u64())
        except InvalidInput as error:
            raise MalformedMessage(error.detail) from None


def check_node(node: str) -> str:
    """The name, or ``InvalidInput``."""
    if not node.isprintable() or " " in node or not 1 <= len(node.encode()) <= MAX_NODE_BYTES:
        raise InvalidInput(
            f"A node's name is 1 to {MAX_NODE_BYTES} bytes of printable text without spaces."
        )
    return node


def read_node(reader: Reader) -> str:
    try:
        return check_node(reader.text(MAX_NODE_BYTES))
    except InvalidInput as error:
        raise MalformedMessage(error.detail) from None


def default_threshold(nodes: int) -> int:
    """Strictly more than half of the nodes."""
    return nodes // 2 + 1


def least_threshold(nodes: int, assumed: Assumed | None = None) -> int:
    return max(MIN_NODES, default_threshold(nodes + (assumed.colluding if assumed else 0)))


def check_threshold(threshold: int, nodes: int, assumed: Assumed | None = None) -> int:
    """The threshold, if it suits a run of ``nodes`` nodes.

    It must be more than half: otherwise an owner could have two disjoint sets of nodes confirm two
    survivor sets and learn both kinds of share of a node (Bonawitz et al., section 6). Colluding
    nodes confirm both, so that as many more are needed where they are ``assumed``.
    """
    if not MIN_NODES <= nodes <= MAX_NODES:
        raise InvalidInput(
            f"Secure aggregation takes {MIN_NODES} to {MAX_NODES} nodes, not {nodes}."
        )
    least = least_threshold(nodes, assumed)
    if not least <= threshold <= nodes:
        raise InvalidInput(
            f"A threshold of {threshold} does not suit {nodes} nodes.",
            hint=f"Choose {least} to {nodes}: more than half of the nodes, at most all of them.",
        )
    return threshold
