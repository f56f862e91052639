"""A copy of the manifests to break."""

from __future__ import annotations

import shutil
from pathlib import Path

from deploy.check.__main__ import MANIFESTS
from deploy.check.render import renderer

TOOL = renderer()


class Copy:
    def __init__(self, directory: Path) -> None:
        self.root = directory / "k8s"
        shutil.copytree(MANIFESTS, self.root)

    def replace(self, name: str, old: str, new: str) -> None:
        file = self.root / name
        text = file.read_text()
        assert old in text, f"{name} has no {old!r}"
        file.write_text(text.replace(old, new))
