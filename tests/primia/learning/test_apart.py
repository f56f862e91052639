import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from primia.learning import apart
from primia.learning.models import create_model, flatten, spec_layout
from primia.learning.spec import ModelSpec

SPEC = ModelSpec(architecture="small_cnn", classes=("a", "b"), image_size=16, seed=7)


def test_a_process_without_torch_gets_the_same_weights_and_stays_without(tmp_path: Path) -> None:
    target = tmp_path / "weights.f4"
    code = (
        "import sys; from primia.learning import apart; from primia.learning.spec import ModelSpec;"
        "spec = ModelSpec.parse(sys.argv[1]); apart.first_weights(spec).tofile(sys.argv[2]);"
        "print(apart.layout_of(spec).to_json()); sys.exit('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, SPEC.model_dump_json(), str(target)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == spec_layout(SPEC).to_json() == apart.layout_of(SPEC).to_json()
    here = flatten(create_model(SPEC))
    assert np.array_equal(np.fromfile(target, dtype="<f4"), here)
    assert np.array_equal(apart.first_weights(SPEC), here)


def test_a_process_that_dies_is_told_of_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\necho out of memory >&2\nexit 3\n")
    dying.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(dying))
    with pytest.raises(apart.NoAnswer, match="out of memory"):
        apart.layout_of(SPEC)
