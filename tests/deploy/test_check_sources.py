"""The manifests as they stand, with no tool installed; each defect is found and named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.check import __main__ as check
from deploy.check import sources
from deploy.check.render import documents, kustomizations, overlays
from tests.deploy.manifests import Copy

pytest.importorskip("kubernetes_validate", reason="comes with the dev extra")


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


def test_the_manifests_of_the_repository_are_sound(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "renderer", lambda: None)
    status = check.main([])
    told = capsys.readouterr().out.splitlines()
    assert (status, len(told)) == (0, 2), told
    assert "overlays are not rendered" in told[0]
    assert "the manifests are sound (4 overlays)" in told[1]


def test_a_missing_file_is_named(copy: Copy) -> None:
    (copy.root / "base/service/api.yaml").unlink()
    assert list(sources.missing_and_stray(copy.root)) == [
        "base/service: resources names api.yaml, which does not exist"
    ]


def test_a_file_that_nothing_names_is_named(copy: Copy) -> None:
    (copy.root / "base/service/forgotten.yaml").write_text("kind: ConfigMap\n")
    assert list(sources.missing_and_stray(copy.root)) == [
        "base/service/forgotten.yaml: no kustomization names this file"
    ]


def test_a_directory_without_a_kustomization_is_named(copy: Copy) -> None:
    (copy.root / "components/gpu/kustomization.yaml").unlink()
    found = list(sources.missing_and_stray(copy.root))
    assert "overlays/separate-institutions/model-owner: components names gpu, no kustomization" in (
        found
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("accessModes: [ReadWriteOnce]", "accessModes: ReadWriteOnce", "spec.accessModes"),
        ("  resources:", "  recources:", "recources"),
        ("kind: PersistentVolumeClaim", "kind: PersistentVolumeClaims", "PersistentVolumeClaims"),
    ],
)
def test_a_manifest_that_does_not_fit_its_schema_is_named(
    copy: Copy, old: str, new: str, said: str
) -> None:
    copy.replace("base/service/state.yaml", old, new)
    where = "base/service/state.yaml"
    document = documents((copy.root / where).read_text())[0]
    found = list(sources.schema_defects(where, document))
    assert len(found) == 1
    assert found[0].startswith("base/service/state.yaml: ")
    assert said in found[0]


def test_overlays_are_what_an_operator_applies() -> None:
    names = {
        str(path.relative_to(check.MANIFESTS / "overlays")) for path in overlays(check.MANIFESTS)
    }
    assert names == {
        "single-cluster",
        "separate-institutions/model-owner",
        "separate-institutions/data-node",
        "separate-institutions/crypto-provider",
    }


def test_every_kustomization_is_one() -> None:
    found = kustomizations(check.MANIFESTS)
    assert found
    for directory, document in found.items():
        kind = "Component" if directory.parent.name == "components" else "Kustomization"
        assert document["kind"] == kind, directory


def test_defects_are_lines_and_a_status(copy: Copy) -> None:
    (copy.root / "base/service/one.yaml").touch()
    (copy.root / "base/service/two.yaml").touch()
    command = [sys.executable, "-m", "deploy.check", str(copy.root)]
    (copy.root / "base/service/api.yaml").unlink()
    # No tool on the PATH: a line says that nothing is rendered.
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={"PATH": ""},
        cwd=Path(check.__file__).parents[2],
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 1, done.stderr
    assert len(lines) == 4
    assert "overlays are not rendered" in lines[0]
