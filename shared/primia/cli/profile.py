"""Who the user is and where the services are.

``PRIMIA_PROFILE`` names a TOML file (``user``, ``key``, ``[owner] name, url``, ``[nodes]`` with
``name = "url"``, ``[dealer] name, url``); without it, the grid of this directory is meant.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from primia.chassis.identity import Identity
from primia.client import DataNode, ModelOwner
from primia.errors import InvalidInput, NotFound
from primia.grid import layout


@dataclass(frozen=True)
class Service:
    name: str
    url: str


@dataclass(frozen=True)
class Profile:
    user: str
    key: Path
    owner: Service | None = None
    dealer: Service | None = None
    nodes: dict[str, Service] = field(default_factory=dict)

    def identity(self) -> Identity:
        return Identity.load(self.key, self.user)

    def model_owner(self) -> ModelOwner:
        if self.owner is None:
            raise NotFound("The profile names no model owner.", hint="Add [owner] name and url.")
        return ModelOwner(self.identity(), self.owner.name, self.owner.url)

    def data_node(self, name: str | None) -> DataNode:
        node = self._node(name)
        return DataNode(self.identity(), node.name, node.url)

    def _node(self, name: str | None) -> Service:
        if name is None and len(self.nodes) == 1:
            return next(iter(self.nodes.values()))
        known = ", ".join(self.nodes) or "none"
        if name is None:
            raise InvalidInput("Several data nodes are known.", hint=f"Choose --node: {known}.")
        if name not in self.nodes:
            raise NotFound(f"There is no data node {name}.", hint=f"Known: {known}.")
        return self.nodes[name]

    def services(self) -> list[Service]:
        """All that are known, each once."""
        fixed = [service for service in (self.owner, self.dealer) if service is not None]
        return [*fixed, *self.nodes.values()]


def load() -> Profile:
    path = os.environ.get("PRIMIA_PROFILE")
    return _from_file(Path(path)) if path else of_grid(layout.load(grid_root()))


def grid_root() -> Path:
    given = os.environ.get("PRIMIA_GRID")
    return Path(given).absolute() if given else layout.default_root()


def of_grid(grid: layout.Grid) -> Profile:
    owner, dealer = grid.member(layout.OWNER), grid.member(layout.DEALER)
    return Profile(
        user=layout.OPERATOR,
        key=grid.operator_key,
        owner=Service(owner.name, owner.url),
        dealer=Service(dealer.name, dealer.url),
        nodes={node.name: Service(node.name, node.url) for node in grid.nodes},
    )


def _from_file(path: Path) -> Profile:
    try:
        document = tomllib.loads(path.read_text())
        return Profile(
            user=document["user"],
            key=(path.parent / document["key"]).absolute(),
            owner=Service(**document["owner"]) if "owner" in document else None,
            dealer=Service(**document["dealer"]) if "dealer" in document else None,
            nodes={name: Service(name, url) for name, url in document.get("nodes", {}).items()},
        )
    except OSError as error:
        raise InvalidInput(f"The profile {path} cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"The profile {path} is not usable: {error}.") from error
