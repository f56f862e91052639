"""What the trial in containers gives its containers is what the services accept."""

from __future__ import annotations

import importlib
import stat
from pathlib import Path

import pytest

from deploy import try_containers
from deploy.check.safety import SETTINGS, variables
from deploy.try_containers import Member, enrol, environment, members
from primia.chassis.identity import Identity, PrincipalBook, verify_token


@pytest.mark.parametrize("member", members(18000), ids=lambda member: member.name)
def test_the_settings_are_accepted(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name = SETTINGS[member.service]
    kind = getattr(importlib.import_module(module), name)
    given = environment(member)
    assert {key for key in given if key.startswith("PRIMIA_")} <= variables(kind)
    monkeypatch.setenv("PRIMIA_STATE_DIR", "/var/lib/primia/state")
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    assert kind.from_environment().name == member.name


def test_members_have_ports_and_passwords_of_their_own() -> None:
    grid = members(18000)
    assert [member.port for member in grid] == list(range(18000, 18005))
    assert len({member.password for member in grid}) == 5
    assert all(len(member.password) == 32 for member in grid)


def test_everybody_knows_everybody_else(tmp_path: Path) -> None:
    grid = members(18000)
    operator = enrol(tmp_path, grid)
    for member in grid:
        key = tmp_path / member.name / "identity" / "identity.pem"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert Identity.load(key, member.name).name == member.name
        book = PrincipalBook(tmp_path / member.name / "principals")
        others = {other.name for other in grid} - {member.name} | {"operator"}
        assert {known.name for known in book.all()} == others
        caller = verify_token(operator.token(member.name), member.name, book)
        assert (caller.name, caller.role) == ("operator", "user")


def test_without_podman_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["try-containers"])
    assert try_containers.main() == 1
    assert capsys.readouterr().err == "podman was not found: install it\n"
