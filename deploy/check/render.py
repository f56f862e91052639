"""Finding and rendering the manifests: every kustomization, by kubectl or kustomize."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]
_RENDER_SECONDS = 120
_LISTS = ("resources", "components")


def renderer() -> list[str] | None:
    """The command that renders a directory, or None where neither tool is installed."""
    if found := shutil.which("kubectl"):
        return [found, "kustomize"]
    if found := shutil.which("kustomize"):
        return [found, "build"]
    return None


def render(command: list[str], directory: Path) -> list[Document]:
    """Raises ValueError with the tool's last line."""
    done = subprocess.run(
        [*command, str(directory)],
        capture_output=True,
        text=True,
        timeout=_RENDER_SECONDS,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it gave no reason"]
        raise ValueError(last[0])
    return documents(done.stdout)


def documents(text: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(text) if document is not None]


def kustomizations(root: Path) -> dict[Path, Document]:
    """Each directory that holds one, in order."""
    found = sorted(root.rglob("kustomization.yaml"))
    return {file.parent: documents(file.read_text())[0] for file in found}


def overlays(root: Path) -> list[Path]:
    """What an operator applies: the overlays that no other overlay contains."""
    known = kustomizations(root / "overlays")
    contained = {
        (directory / entry).resolve()
        for directory, document in known.items()
        for entry in document.get("resources", [])
    }
    return [directory for directory in known if directory.resolve() not in contained]


def named_files(directory: Path, kustomization: Document) -> Iterator[tuple[str, Path]]:
    """(what it is, path) of everything that a kustomization names on the disk."""
    for kind in _LISTS:
        yield from ((kind, directory / entry) for entry in kustomization.get(kind, []))
    for patch in kustomization.get("patches", []):
        if "path" in patch:
            yield "patches", directory / patch["path"]
    for generator in kustomization.get("configMapGenerator", []):
        for key in ("envs", "files"):
            yield from (("settings", directory / entry) for entry in generator.get(key, []))
