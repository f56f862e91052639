from __future__ import annotations

import pytest

from primia.aggregation.terms import (
    MAX_NODES,
    MAX_VALUES,
    Groups,
    RoundId,
    check_node,
    check_threshold,
    default_threshold,
    read_node,
)
from primia.codec import Reader, Writer
from primia.errors import InvalidInput, MalformedMessage


def test_the_default_threshold_is_the_smallest_majority() -> None:
    assert [default_threshold(n) for n in range(2, 9)] == [2, 2, 3, 3, 4, 4, 5]
    for nodes in range(2, MAX_NODES + 1):
        assert check_threshold(default_threshold(nodes), nodes) * 2 > nodes


@pytest.mark.parametrize(
    ("threshold", "nodes"), [(1, 2), (1, 3), (2, 4), (3, 6), (4, 3), (0, 2), (-1, 3)]
)
def test_a_threshold_that_is_no_majority_is_refused_with_what_to_choose(
    threshold: int, nodes: int
) -> None:
    with pytest.raises(InvalidInput, match=f"Choose {default_threshold(nodes)} to {nodes}"):
        check_threshold(threshold, nodes)


@pytest.mark.parametrize("nodes", [0, 1, MAX_NODES + 1])
def test_a_number_of_nodes_that_cannot_aggregate_is_refused(nodes: int) -> None:
    with pytest.raises(InvalidInput, match="2 to 250 nodes"):
        check_threshold(max(nodes, 1), nodes)


@pytest.mark.parametrize("name", ["a", "site-1", "Universitätsklinik", "x" * 64])
def test_node_names_that_are_accepted(name: str) -> None:
    assert check_node(name) == name
    assert read_node(Reader(Writer().text(name).take())) == name


@pytest.mark.parametrize("name", ["", "a b", "a\n", "\x00", "x" * 65, "ä" * 33, "a\u2028b"])
def test_node_names_that_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_node(name)
    with pytest.raises(MalformedMessage):
        read_node(Reader(Writer().text(name).take()))


@pytest.mark.parametrize(
    ("run", "number"),
    [(b"", 1), (bytes(15), 1), (bytes(17), 1), (bytes(16), -1), (bytes(16), 2**32)],
)
def test_round_identifiers_are_bounded(run: bytes, number: int) -> None:
    with pytest.raises(InvalidInput):
        RoundId(run, number)


@pytest.mark.parametrize("sizes", [(0, 0), (-1, 5), (5, -1), (MAX_VALUES, 1), (2**63, 2**63)])
def test_group_sizes_are_bounded(sizes: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput):
        Groups(*sizes)
    if min(sizes) >= 0:
        with pytest.raises(MalformedMessage):
            Groups.read(Reader(Writer().u64(sizes[0]).u64(sizes[1]).take()))


def test_groups_lie_one_behind_the_other() -> None:
    groups = Groups(parameters=5, buffers=3)
    assert groups.size == 8
    assert list(groups.spans()) == [("parameters", slice(0, 5)), ("buffers", slice(5, 8))]
    assert Groups.read(Reader(groups.write(Writer()).take())) == groups
