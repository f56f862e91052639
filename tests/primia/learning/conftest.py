import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from primia.prg import Seed, Stream


@pytest.fixture
def draw() -> Callable[[Path, int], Path]:
    """Writes a small grey PNG that differs with its number."""

    def write(path: Path, number: int) -> Path:
        stream = Stream(Seed(number.to_bytes(16, "little")), "test image")
        pixels = stream.words((20, 20), bits=8).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
        return path

    return write
