"""Settings come from the environment alone and are refused at start if they are unsafe."""

from __future__ import annotations

import ipaddress
import stat
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from primia.errors import UnsafeSettings
from primia.fss.kernels import KernelName, supported
from primia.messages.common import Name

MIB = 1 << 20


class ServiceSettings(BaseSettings):
    """What every service needs. Each field is read from ``PRIMIA_<FIELD>`` unless it says so."""

    model_config = SettingsConfigDict(env_prefix="PRIMIA_", extra="ignore", frozen=True)

    name: Name
    state_dir: Path
    database_url: SecretStr | None = Field(
        default=None, validation_alias="DATABASE_URL", description="default: SQLite in state_dir"
    )
    broker_url: SecretStr = Field(validation_alias="BROKER_URL", description="redis://…")
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    identity_file: Path | None = Field(default=None, description="default: state_dir/identity.pem")
    principals_dir: Path | None = Field(default=None, description="default: state_dir/principals")
    allow_plain_http: bool = Field(
        default=False,
        description="accept http:// peers beyond this machine: only behind TLS of your own",
    )
    max_json_bytes: int = Field(default=MIB, ge=1024)
    max_body_bytes: int = Field(default=2048 * MIB, ge=1024)
    min_free_bytes: int = Field(default=256 * MIB, ge=0)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    metrics_token: SecretStr | None = Field(default=None, description="opens /metrics alone")
    threads: int = Field(default=1, ge=1, le=256, description="arithmetic threads a task")
    concurrency: int = Field(default=2, ge=1, le=64, description="tasks at once in a worker")
    kernel: KernelName = Field(
        default="auto", description="of comparisons; gpu: of linear layers too"
    )
    embedded_beat: bool = Field(default=False, description="the worker also runs the beat")
    visibility_timeout: int = Field(default=3600, ge=60)

    @classmethod
    def from_environment(cls) -> Self:
        """Raises UnsafeSettings naming each variable that is missing or wrong, never its value."""
        try:
            return cls()
        except ValidationError as error:
            wrong = "; ".join(_describe(cls, e["loc"], e["msg"]) for e in error.errors())
            raise UnsafeSettings(f"The settings are not usable: {wrong}.") from None

    @property
    def identity_path(self) -> Path:
        return self.identity_file or self.state_dir / "identity.pem"

    @property
    def principals_path(self) -> Path:
        return self.principals_dir or self.state_dir / "principals"

    @property
    def database(self) -> str:
        if self.database_url is None:
            return f"sqlite:///{self.state_dir / 'database.sqlite'}"
        return self.database_url.get_secret_value()

    @model_validator(mode="after")
    def _safe(self) -> Self:
        broker = urlsplit(self.broker_url.get_secret_value())
        if broker.scheme not in ("redis", "rediss"):
            raise ValueError("BROKER_URL must be a redis:// or rediss:// URL")
        if broker.password is None and not is_loopback(broker.hostname or ""):
            raise ValueError("BROKER_URL reaches beyond this machine and carries no password")
        if self.state_dir.exists() and stat.S_IMODE(self.state_dir.stat().st_mode) & 0o007:
            raise ValueError(f"{self.state_dir} is open to every user of this machine")
        if not supported(self.kernel):
            needed = {"native": "a processor with AES-NI", "gpu": "an NVIDIA GPU and triton"}
            raise ValueError(f"PRIMIA_KERNEL={self.kernel} needs {needed[self.kernel]}; use auto")
        return self

    def check_peer_url(self, variable: str, url: str) -> None:
        """Raises ValueError for a peer that would be spoken to in the clear across a network."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{variable} must be an http:// or https:// URL")
        if parts.scheme == "http" and not is_loopback(parts.hostname) and not self.allow_plain_http:
            raise ValueError(
                f"{variable} is plain http beyond this machine; use https, or set "
                "PRIMIA_ALLOW_PLAIN_HTTP=true where the network itself is encrypted"
            )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _describe(cls: type[BaseSettings], location: tuple[int | str, ...], message: str) -> str:
    if not location:
        return message.removeprefix("Value error, ")
    field = str(location[0])
    known = cls.model_fields.get(field)
    alias = known.validation_alias if known else None
    variable = alias if isinstance(alias, str) else f"PRIMIA_{field.upper()}"
    return f"{variable.upper() if known is None else variable}: {message}"
