"""What stands where in an embedded grid: members, ports, directories, environment."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from primia.chassis.identity import Identity, Principal, PrincipalBook, Role
from primia.errors import InvalidInput, NotFound
from primia.prg import fresh_bytes

OPERATOR = "operator"
OWNER = "model-owner"
DEALER = "crypto-provider"
NODES = ("hospital-a", "hospital-b", "hospital-c")
_VERSION = 1


@dataclass(frozen=True)
class Member:
    """One service of the grid, as its own institution would run it."""

    name: str
    kind: str
    role: Role
    port: int
    broker_port: int
    broker_password: str
    database_url: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def broker_url(self) -> str:
        return f"redis://:{self.broker_password}@127.0.0.1:{self.broker_port}/0"

    def __repr__(self) -> str:
        return f"Member({self.name!r}, {self.kind!r}, port={self.port})"


@dataclass(frozen=True)
class Grid:
    """A grid on disk; ``grid.json`` (private) is its description."""

    root: Path
    members: tuple[Member, ...]

    def member(self, name: str) -> Member:
        for member in self.members:
            if member.name == name:
                return member
        known = ", ".join(member.name for member in self.members)
        raise NotFound(f"The grid has no member {name}.", hint=f"It has {known}.")

    @property
    def nodes(self) -> tuple[Member, ...]:
        return tuple(member for member in self.members if member.role == "data_node")

    def home(self, member: Member) -> Path:
        return self.root / member.name

    @property
    def operator_key(self) -> Path:
        return self.root / "operator.pem"

    def operator(self) -> Identity:
        return Identity.load(self.operator_key, OPERATOR)

    def environment(self, member: Member, data_roots: Iterable[Path] = ()) -> dict[str, str]:
        """The settings of a member, as it would get them anywhere."""
        owner, dealer = self.member(OWNER), self.member(DEALER)
        values = {
            "PRIMIA_NAME": member.name,
            "PRIMIA_STATE_DIR": str(self.home(member)),
            "PRIMIA_HOST": "127.0.0.1",
            "PRIMIA_PORT": str(member.port),
            "BROKER_URL": member.broker_url,
            "PRIMIA_EMBEDDED_BEAT": "true",
            "PRIMIA_DEALER_NAME": dealer.name,
            "PRIMIA_DEALER_URL": dealer.url,
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        if member.database_url is not None:
            values["DATABASE_URL"] = member.database_url
        if member.role == "data_node":
            roots = [str(self.home(member) / "images"), *map(str, data_roots)]
            values |= {
                "PRIMIA_OWNER_NAME": owner.name,
                "PRIMIA_OWNER_URL": owner.url,
                "PRIMIA_APPROVAL": "auto",
                "PRIMIA_ACCEPT_PLAIN_UPDATES": "true",
                "PRIMIA_OTHER_SPLITS": "true",
                "PRIMIA_DATA_ROOTS": json.dumps(roots),
            }
        return values


def default_root() -> Path:
    return Path.cwd() / ".primia" / "grid"


def exists(root: Path) -> bool:
    return (root / "grid.json").exists()


def load(root: Path) -> Grid:
    path = root / "grid.json"
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise NotFound(f"There is no grid in {root}.", hint="Run `primia grid up`.") from error
    except ValueError as error:
        raise InvalidInput(f"{path} is damaged.", hint="Run `primia grid down --erase`.") from error
    if document.get("version") != _VERSION:
        raise InvalidInput(
            f"The grid in {root} was made by another version.",
            hint="Run `primia grid down --erase`.",
        )
    return Grid(root, tuple(Member(**member) for member in document["members"]))


def create(
    root: Path, databases: Mapping[str, str] | None = None, nodes: Sequence[str] = NODES
) -> Grid:
    """Make keys, enrol everybody with everybody who must know them, choose free ports.

    ``databases``: member -> URL; a member without one uses SQLite in its directory.
    """
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    root.chmod(0o700)
    ports = _free_ports(2 * (2 + len(nodes)))
    kinds: list[tuple[str, str, Role]] = [
        (DEALER, "crypto_provider", "crypto_provider"),
        (OWNER, "model_owner", "model_owner"),
        *((node, "data_node", "data_node") for node in nodes),
    ]
    members = tuple(
        Member(
            name,
            kind,
            role,
            ports.pop(),
            ports.pop(),
            fresh_bytes(16).hex(),
            (databases or {}).get(name),
        )
        for name, kind, role in kinds
    )
    grid = Grid(root, members)
    _enrol(grid)
    document = {"version": _VERSION, "members": [asdict(member) for member in members]}
    temporary = root / "grid.json.tmp"
    temporary.touch(mode=0o600)
    temporary.write_text(json.dumps(document, indent=2) + "\n")
    temporary.replace(root / "grid.json")
    return grid


def _enrol(grid: Grid) -> None:
    principals: list[Principal] = []
    operator = Identity.fresh(OPERATOR)
    grid.operator_key.unlink(missing_ok=True)
    operator.save(grid.operator_key)
    principals.append(operator.principal("user"))
    for member in grid.members:
        home = grid.home(member)
        home.mkdir(mode=0o700, exist_ok=True)
        (home / "identity.pem").unlink(missing_ok=True)
        identity = Identity.fresh(member.name)
        identity.save(home / "identity.pem")
        principals.append(identity.principal(member.role, member.url))
    for member in grid.members:
        book = PrincipalBook(grid.home(member) / "principals")
        for principal in principals:
            if principal.name != member.name:
                book.add(principal)


def _free_ports(count: int) -> list[int]:
    """Ports that are free now; all are held while they are chosen, so none is chosen twice."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
