"""Files of weights whose names end with a hash, as torch.hub has it; nothing here imports torch."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from primia.errors import InvalidInput

MAX_FILE_BYTES = 2 << 30
_CHUNK = 1 << 20
# The first eight digits of the file's SHA-256.
_HASHED = re.compile(r"-([0-9a-f]{8})\.(?:pth|pt|safetensors)$")


def check_hash(path: Path) -> None:
    """A name that ends with a hash is a promise: refuse a file that does not keep it."""
    named = _HASHED.search(path.name)
    if named is None:
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    if not digest.hexdigest().startswith(named[1]):
        raise InvalidInput(
            f"{path.name} is not the file that its name's hash promises.",
            hint="Download it again.",
        )
