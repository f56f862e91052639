"""The tables of ``primia rounds``."""

from __future__ import annotations

from rich.console import Console

from primia.cli.rounds import proposed


def test_every_field_of_a_proposal_is_shown() -> None:
    proposal = {
        "rounds": 5,
        "max_norm": None,
        "model": {"classes": ["a", "b"]},
        "nodes": [{"name": "node-a"}, {"name": "node-b"}],
    }
    console = Console(width=100)
    with console.capture() as found:
        console.print(proposed(proposal))
    lines = [line.split() for line in found.get().splitlines()]
    shown = {tuple(word for word in words if word not in "│┃") for words in lines}
    assert {
        ("rounds", "5"),
        ("max_norm", "–"),
        ("model.classes", "['a',", "'b']"),
        ("nodes.0.name", "node-a"),
        ("nodes.1.name", "node-b"),
    } <= shown
