"""What ``primia models add`` makes of a user's files, before it sends anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from primia.cli.main import create_app
from primia.cli.models import _bundle, _program
from primia.learning.layout import read_state
from primia.learning.models import spec_layout
from primia.learning.programs.file import pack
from primia.messages.registry import NewModel
from tests.support.bundles import write_bundle
from tests.support.programs import own_program

CLASSES = ("normal", "pneumonia")


def test_a_program_becomes_a_model_with_the_files_weights(tmp_path: Path):
    program, vector = own_program()
    file = tmp_path / "own.program"
    file.write_bytes(pack(program, vector))
    made = _program(file)
    model = NewModel.model_validate({"name": "own", "classes": CLASSES, **made.fields})
    assert (model.program, model.image_size, model.channels) == (program, 16, 1)
    np.testing.assert_array_equal(read_state(made.weights, spec_layout(model.spec())), vector)
    assert program.digest in made.known_by


def test_a_bundle_becomes_a_model_that_is_known_by_its_layout(tmp_path: Path):
    made = _bundle(write_bundle(tmp_path / "own"))
    model = NewModel.model_validate({"name": "own", "classes": CLASSES, **made.fields})
    assert model.layout_digest is not None
    assert model.layout_digest in made.known_by
    read_state(made.weights, spec_layout(model.spec()))


def test_either_a_program_or_a_bundle_is_wanted():
    done = CliRunner().invoke(create_app(), ["models", "add", "own", "--classes", "a,b"])
    assert done.exit_code == 1
    assert "Give either --program or --bundle." in done.output
