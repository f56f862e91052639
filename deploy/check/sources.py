"""The files as they stand: each is named by a kustomization, each manifest fits its schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate  # type: ignore[import-untyped]

from deploy.check.render import Document, documents, kustomizations, named_files

# The oldest version that the manifests are meant for.
KUBERNETES = "1.32"


def missing_and_stray(root: Path) -> Iterator[str]:
    named = {root / "kustomization.yaml"}
    for directory, document in kustomizations(root).items():
        named.add(directory / "kustomization.yaml")
        for kind, path in named_files(directory, document):
            named.add(path.resolve())
            if not path.exists():
                yield f"{_short(root, directory)}: {kind} names {path.name}, which does not exist"
            elif path.is_dir() and not (path / "kustomization.yaml").exists():
                yield f"{_short(root, directory)}: {kind} names {path.name}, no kustomization"
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        if file.resolve() not in named and file not in named:
            yield f"{_short(root, file)}: no kustomization names this file"


def plain_manifests(root: Path) -> Iterator[tuple[str, Document]]:
    """Whole manifests: the files named as resources (a patch is only part of one)."""
    for directory, document in kustomizations(root).items():
        for kind, path in named_files(directory, document):
            if kind == "resources" and path.is_file():
                yield from ((_short(root, path), found) for found in documents(path.read_text()))


def schema_defects(where: str, document: Document) -> Iterator[str]:
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        place = ".".join(map(str, error.path)) or "the document"
        yield f"{where}: {title(document)}: {place}: {error.message}"
    except (
        kubernetes_validate.SchemaNotFoundError,
        kubernetes_validate.InvalidSchemaError,
    ) as error:
        yield f"{where}: {title(document)}: {error}"


def title(document: Document) -> str:
    return f"{document.get('kind')} {document.get('metadata', {}).get('name')}"


def _short(root: Path, path: Path) -> str:
    return str(path.resolve().relative_to(root.resolve()))
