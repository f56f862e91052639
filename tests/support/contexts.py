"""Contexts of services for tests: real keys, a migrated or created database, a real broker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from primia.chassis.context import Context, build
from primia.chassis.identity import Identity, Principal, PrincipalBook, Role

ROLES: dict[str, Role] = {
    "model-owner": "model_owner",
    "crypto-provider": "crypto_provider",
    "node-a": "data_node",
    "node-b": "data_node",
    "node-c": "data_node",
    "alice": "user",
    "mallory": "user",
}


class Cast:
    """Identities of a small federation; everybody of ``names`` is enrolled in each book."""

    def __init__(self, root: Path, names: tuple[str, ...] = tuple(ROLES)) -> None:
        self.root = root
        self.identities = {name: Identity.fresh(name) for name in names}

    def principal(self, name: str, url: str | None = None) -> Principal:
        return self.identities[name].principal(ROLES[name], url)

    def home(self, name: str) -> Path:
        """The state directory of one service, with its key and its enrolled principals."""
        home = self.root / name
        if not home.exists():
            home.mkdir(parents=True, mode=0o700)
            self.identities[name].save(home / "identity.pem")
            book = PrincipalBook(home / "principals")
            for other in self.identities:
                if other != "mallory":
                    book.add(self.principal(other))
        return home

    def token(self, issuer: str, audience: str, lifetime: int = 60) -> str:
        return self.identities[issuer].token(audience, lifetime)

    def headers(self, issuer: str, audience: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token(issuer, audience)}"}

    def context(
        self,
        kind: str,
        name: str,
        settings: type[Any],
        broker_url: str,
        database_url: str | None = None,
        **overrides: Any,
    ) -> Context:
        """A context as a real process would build it; the caller closes it."""
        values = {
            "name": name,
            "state_dir": self.home(name),
            "BROKER_URL": broker_url,
            "min_free_bytes": 0,
            **overrides,
        }
        if database_url is not None:
            values["DATABASE_URL"] = database_url
        return build(kind, settings(**values))
