"""``python -m deploy.check [DIRECTORY]``: one line for each defect of the manifests, then status 1.

Where neither kubectl nor kustomize is installed, the files are checked as they stand and the
overlays are not rendered; a line says so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from deploy.check import references, safety, sources
from deploy.check.render import overlays, render, renderer

MANIFESTS = Path(__file__).parents[1] / "k8s"


def defects(root: Path, command: list[str] | None) -> Iterator[str]:
    yield from sources.missing_and_stray(root)
    if command is None:
        for where, document in sources.plain_manifests(root):
            yield from sources.schema_defects(where, document)
        return
    for directory in overlays(root):
        yield from overlay_defects(root, directory, command)


def overlay_defects(root: Path, directory: Path, command: list[str]) -> Iterator[str]:
    where = str(directory.relative_to(root))
    try:
        documents = render(command, directory)
    except ValueError as error:
        yield f"{where}: it cannot be rendered: {error}"
        return
    seen: set[str] = set()
    for document in documents:
        # The hospitals of one overlay differ in little else than their namespace.
        content = json.dumps(document, sort_keys=True).replace(references.namespace(document), "")
        if content not in seen:
            seen.add(content)
            yield from sources.schema_defects(where, document)
    manifests = references.Manifests(documents)
    for defect in (*references.defects(manifests), *safety.defects(manifests)):
        yield f"{where}: {defect}"


def main(arguments: list[str]) -> int:
    root = Path(arguments[0]) if arguments else MANIFESTS
    command = renderer()
    if command is None:
        print("deploy: neither kubectl nor kustomize is installed: overlays are not rendered")
    found = list(defects(root, command))
    for defect in found:
        print(defect)
    if not found:
        print(f"deploy: the manifests are sound ({len(overlays(root))} overlays)")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
