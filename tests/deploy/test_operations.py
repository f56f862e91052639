"""The operations guide and the services' settings name the same things."""

from __future__ import annotations

import importlib
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from deploy.check.safety import SETTINGS, variables
from primia.chassis.process import ROLES
from primia.chassis.settings import ServiceSettings

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "operations.md"
HEADINGS = {
    "model-owner": "### Model owner",
    "data-node": "### Data node",
    "crypto-provider": "### Crypto provider",
}


def table(heading: str) -> dict[str, str]:
    """Variable → default, as the guide has them below a heading."""
    section = GUIDE.read_text().split(f"{heading}\n", 1)[1].split("\n#", 1)[0]
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.+?) \| .+ \|$", section, re.MULTILINE)
    return dict(rows)


def settings(service: str) -> type[ServiceSettings]:
    module, name = SETTINGS[service]
    found: type[ServiceSettings] = getattr(importlib.import_module(module), name)
    return found


def test_the_common_settings_are_the_guides() -> None:
    assert set(table("### Every service")) == variables(ServiceSettings)


@pytest.mark.parametrize("service", SETTINGS)
def test_the_settings_of_a_service_are_the_guides(service: str) -> None:
    """Its own, and those of every service that have another default there."""
    found = settings(service)
    own = variables(found) - variables(ServiceSettings)
    changed = set(ServiceSettings.model_fields) & set(found.__annotations__)
    assert set(table(HEADINGS[service])) == own | {f"PRIMIA_{name.upper()}" for name in changed}


@pytest.mark.parametrize("service", SETTINGS)
def test_the_defaults_are_the_guides(service: str) -> None:
    written = table("### Every service") | table(HEADINGS[service])
    for name, field in settings(service).model_fields.items():
        variable = field.validation_alias or f"PRIMIA_{name.upper()}"
        told = written[str(variable)]
        if field.is_required():
            assert told == "–", variable
        elif field.default_factory is not None:
            assert re.search("machine|cores", told), variable
        elif size := re.fullmatch(r"(\d+) ([MG])iB", told):
            assert int(size[1]) << {"M": 20, "G": 30}[size[2]] == field.default, variable
        elif told.startswith("`") and told.endswith("`"):
            assert told.strip("`") == str(field.default).removesuffix(".0").lower().replace(
                "info", "INFO"
            ), variable
        else:
            assert not field.default, variable


def test_every_role_is_explained() -> None:
    text = GUIDE.read_text()
    for role in ROLES:
        assert f"| `{role}` |" in text


def test_every_directory_of_manifests_is_explained() -> None:
    text = GUIDE.read_text()
    for directory in sorted((ROOT / "deploy/k8s/components").iterdir()):
        assert f"`components/{directory.name}`" in text
    for directory in sorted((ROOT / "deploy/k8s/base").iterdir()):
        assert f"`base/{directory.name}`" in text


def test_the_image_takes_what_the_services_need_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    kept = {line.removeprefix("!") for line in rules if line.startswith("!")}
    assert kept == {"pyproject.toml", "constraints.txt", "README.md", "shared", "services"}


def test_a_data_nodes_image_has_what_trains_bundles() -> None:
    """Pinned by the extra as by the constraints, which an install of the extra alone does not
    read."""
    (asked,) = re.findall(r"'primia-grid\[(\w+)\]'", (ROOT / "deploy/Dockerfile").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = project["optional-dependencies"][asked]
    assert {pin.split("==")[0] for pin in pins} == {"monai", "pytorch-ignite"}
    assert set(pins) <= set((ROOT / "constraints.txt").read_text().splitlines())
    assert f"`{asked}`" in GUIDE.read_text().split("## Images\n", 1)[1].split("\n## ", 1)[0]


def test_every_module_is_in_a_package_that_is_installed() -> None:
    setuptools = pytest.importorskip("setuptools")
    installed = set()
    for where in (".", "shared"):
        found = setuptools.find_namespace_packages(
            str(ROOT / where), include=["primia*", "services*"]
        )
        installed |= {str(Path(where, name.replace(".", "/"))) for name in found}
    modules = [*(ROOT / "services").rglob("*.py"), *(ROOT / "shared/primia").rglob("*.py")]
    homes = {str(file.parent.relative_to(ROOT)) for file in modules}
    assert homes <= installed
    assert "services/model_owner/migrations/versions" in homes


@pytest.mark.parametrize("script", ["build-images", "try-containers"])
def test_scripts_are_programs_in_plain_shell(script: str) -> None:
    path = ROOT / "deploy" / script
    assert path.stat().st_mode & 0o111
    checked = subprocess.run(["sh", "-n", str(path)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_building_without_a_builder_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "dirname").symlink_to("/usr/bin/dirname")
    done = subprocess.run(
        ["/bin/sh", str(ROOT / "deploy/build-images")],
        capture_output=True,
        text=True,
        env={"PATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert done.stderr == "No image builder was found: install docker, podman or buildah.\n"
