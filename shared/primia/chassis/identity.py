"""Who is who: Ed25519 identities, enrolled public keys, short-lived signed tokens (JWT, RFC 8037).

A service or user holds an ``Identity``; the others hold its ``Principal`` (name, role, public key),
enrolled as one JSON file each in the principals directory. A token names its issuer, its one
audience and an expiry at most ``MAX_LIFETIME`` seconds away.
"""

from __future__ import annotations

import base64
import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import Literal

import jwt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import ValidationError

from primia.errors import Conflict, MalformedMessage, StorageFull, Unauthenticated, UnsafeSettings
from primia.messages.common import Base64Url, Message, Name
from primia.prg import fresh_bytes

Role = Literal["model_owner", "data_node", "crypto_provider", "user", "monitor"]
LIFETIME = 60
MAX_LIFETIME = 3600
_CLOCK_SKEW = 30
_ALGORITHM = "EdDSA"
_MAX_PRINCIPAL_BYTES = 4096


def pages_audience(service: str) -> str:
    """Of a token that travels in an address, and may be seen there: it opens the OpenAPI pages and
    nothing else. No service has this name."""
    return f"{service}/pages"


def encode_key(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode_key(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise MalformedMessage("A value is not base64url.") from error


class Identity:
    """A private Ed25519 key and the name it stands for. Prints no key."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self.name = name
        self._key = key

    @classmethod
    def fresh(cls, name: str) -> Identity:
        return cls(name, Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path, name: str) -> Identity:
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            data = path.read_bytes()
        except OSError as error:
            raise UnsafeSettings(
                f"The identity key {path} cannot be read ({error.strerror}).",
                hint="Create one with `primia identity create`.",
            ) from error
        if mode & 0o007:
            raise UnsafeSettings(
                f"The identity key {path} can be read by every user of this machine.",
                hint=f"Run `chmod 600 {path}`.",
            )
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except ValueError as error:
            raise UnsafeSettings(f"{path} holds no PEM private key.") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise UnsafeSettings(f"{path} holds a key that is not Ed25519.")
        return cls(name, key)

    def save(self, path: Path) -> None:
        """Write the key, readable by its owner alone; never overwrites one."""
        pem = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise Conflict(f"{path} exists already; a key is never overwritten.") from error
        with os.fdopen(handle, "wb") as file:
            file.write(pem)

    @property
    def public_key(self) -> str:
        return encode_key(self._key.public_key().public_bytes_raw())

    def principal(self, role: Role, url: str | None = None) -> Principal:
        return Principal(name=self.name, role=role, public_key=self.public_key, url=url)

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    def storage_key(self) -> bytes:
        """32 bytes for encryption at rest, derived from the identity key."""
        return HKDF(SHA256(), 32, salt=None, info=b"primia/at-rest").derive(
            self._key.private_bytes_raw()
        )

    def token(self, audience: str, lifetime: int = LIFETIME) -> str:
        now = int(time.time())
        claims = {
            "iss": self.name,
            "aud": audience,
            "iat": now,
            "exp": now + lifetime,
            "jti": fresh_bytes(12).hex(),
        }
        return jwt.encode(claims, self._key, algorithm=_ALGORITHM)

    def __repr__(self) -> str:
        return f"Identity({self.name!r})"


class Principal(Message):
    """An enrolled party: what we know of it and trust it to be."""

    name: Name
    role: Role
    public_key: Base64Url
    url: str | None = None

    def key(self) -> Ed25519PublicKey:
        try:
            return Ed25519PublicKey.from_public_bytes(decode_key(self.public_key))
        except ValueError as error:
            raise MalformedMessage(
                f"The public key of {self.name} is not an Ed25519 key (32 bytes in base64url)."
            ) from error

    def verify(self, message: bytes, signature: bytes) -> None:
        """Raises MalformedMessage if this principal did not sign the message."""
        try:
            self.key().verify(signature, message)
        except InvalidSignature as error:
            raise MalformedMessage(f"The signature is not {self.name}'s.") from error


class PrincipalBook:
    """The enrolled principals: one JSON file each, read again when the directory changes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._stamp: tuple[tuple[str, int], ...] | None = None
        self._known: dict[str, Principal] = {}

    def _load(self) -> dict[str, Principal]:
        with self._lock:
            files = sorted(self._directory.glob("*.json")) if self._directory.is_dir() else []
            stamp = tuple((f.name, f.stat().st_mtime_ns) for f in files)
            if stamp != self._stamp:
                loaded = [self._parse(file) for file in files]
                self._known = {principal.name: principal for principal in loaded}
                self._stamp = stamp
            return self._known

    @staticmethod
    def _parse(file: Path) -> Principal:
        if file.stat().st_size > _MAX_PRINCIPAL_BYTES:
            raise UnsafeSettings(f"{file} is too large for an enrolled principal.")
        try:
            principal = Principal.model_validate_json(file.read_bytes())
            principal.key()
        except (ValidationError, MalformedMessage) as error:
            raise UnsafeSettings(f"{file} is no enrolled principal: {error}") from error
        return principal

    def get(self, name: str) -> Principal | None:
        return self._load().get(name)

    def all(self) -> list[Principal]:
        return sorted(self._load().values(), key=lambda principal: principal.name)

    def by_role(self, role: Role) -> list[Principal]:
        return [principal for principal in self.all() if principal.role == role]

    def add(self, principal: Principal) -> None:
        """Enrol; raises Conflict where the name stands for another key already."""
        principal.key()
        known = self.get(principal.name)
        if known is not None and known.public_key != principal.public_key:
            raise Conflict(
                f"{principal.name} is enrolled with another key.",
                hint="Remove the old enrolment first, after checking why the key has changed.",
            )
        target = self._directory / f"{principal.name}.json"
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary = target.with_suffix(f".{fresh_bytes(4).hex()}.tmp")
            document = principal.model_dump(mode="json", exclude_none=True)
            temporary.write_text(json.dumps(document, indent=2) + "\n")
            temporary.replace(target)
        except OSError as error:
            raise StorageFull(
                f"{principal.name} could not be enrolled: the directory of enrolled principals "
                f"cannot be written ({error.strerror})."
            ) from error

    def remove(self, name: str) -> bool:
        target = self._directory / f"{name}.json"
        known = self.get(name) is not None
        target.unlink(missing_ok=True)
        return known


def verify_token(token: str, audience: str, book: PrincipalBook) -> Principal:
    """The principal who signed this token for this audience; raises Unauthenticated."""
    try:
        claimed = jwt.decode(token, options={"verify_signature": False}).get("iss")
    except jwt.PyJWTError as error:
        raise Unauthenticated("The bearer token cannot be read.") from error
    principal = book.get(claimed) if isinstance(claimed, str) else None
    if principal is None:
        raise Unauthenticated("The token's issuer is not enrolled here.")
    try:
        claims = jwt.decode(
            token,
            principal.key(),
            algorithms=[_ALGORITHM],
            audience=audience,
            leeway=_CLOCK_SKEW,
            options={"require": ["iss", "aud", "iat", "exp"], "strict_aud": True},
        )
    except jwt.ExpiredSignatureError as error:
        raise Unauthenticated("The token has expired.", hint="Sign a new one.") from error
    except jwt.InvalidAudienceError as error:
        raise Unauthenticated("The token was made for another service.") from error
    except jwt.PyJWTError as error:
        raise Unauthenticated("The token is not valid.") from error
    if claims["exp"] - claims["iat"] > MAX_LIFETIME:
        raise Unauthenticated(f"The token lives longer than {MAX_LIFETIME} seconds.")
    return principal
