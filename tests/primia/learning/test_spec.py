import json
import subprocess
import sys

import pytest

from primia.errors import InvalidInput
from primia.learning.spec import ModelSpec, architecture, architectures

CLASSES = ("bacterial", "normal", "viral")


def test_a_spec_survives_json() -> None:
    spec = ModelSpec(classes=CLASSES, channels=3, image_size=96, seed=7)
    assert ModelSpec.parse(spec.model_dump_json()) == spec
    assert ModelSpec.parse(json.loads(spec.model_dump_json())) == spec
    assert spec.input_shape == (3, 96, 96)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architecture": "vgg99"}, "architecture"),
        ({"classes": ["one"]}, "classes"),
        ({"classes": ["one", "one"]}, "one"),
        ({"classes": ["one", " two"]}, "classes.1"),
        ({"classes": ["one", ""]}, "classes.1"),
        ({"classes": ["one", "t\nwo"]}, "classes.1"),
        ({"classes": ["one", 2]}, "classes.1"),
        ({"channels": 2}, "channels"),
        ({"image_size": 16}, "image_size"),
        ({"image_size": 4096}, "image_size"),
        ({"image_size": "64"}, "image_size"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**53}, "seed"),
        ({"std": 0}, "std"),
        ({"norm": "layer"}, "norm"),
        ({"norm": "group", "architecture": "lenet"}, "lenet has no norms"),
        ({"mean": float("nan")}, "mean"),
        ({"colour": "grey"}, "colour"),
    ],
)
def test_a_wrong_spec_is_refused_by_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        ModelSpec.parse({"classes": list(CLASSES), **change})


def test_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(InvalidInput):
        ModelSpec.parse(b"{")


def test_a_spec_is_frozen() -> None:
    spec = ModelSpec(classes=CLASSES)
    with pytest.raises(ValueError):
        spec.seed = 3  # type: ignore[misc]


def test_the_catalogue_is_what_specs_accept() -> None:
    for entry in architectures():
        size = entry.smallest_image
        assert ModelSpec(architecture=entry.name, classes=CLASSES, image_size=size).seed == 0
    with pytest.raises(InvalidInput, match="resnet18"):
        architecture("vgg99")


def test_the_modules_of_the_web_processes_do_not_import_torch() -> None:
    modules = [
        "spec",
        "config",
        "schedules",
        "stopper",
        "layout",
        "images",
        "patients",
        "manifest",
        "datasets",
        "cache",
        "storage",
    ]
    imports = "; ".join(f"import primia.learning.{name}" for name in modules)
    code = f"{imports}; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


TENSORS = (
    {"name": "a.weight", "shape": (3, 2), "group": "parameters"},
    {"name": "a.running_mean", "shape": (3,), "group": "buffers"},
)


def external(**changes) -> dict:
    return {"architecture": "external", "classes": CLASSES, "layout": TENSORS, **changes}


def test_an_external_model_is_known_by_the_layout_of_its_state() -> None:
    spec = ModelSpec.parse(external())
    assert ModelSpec.parse(spec.model_dump_json()) == spec
    layout = spec.state_layout()
    assert (layout.group_size("parameters"), layout.group_size("buffers")) == (6, 3)
    assert spec.layout_digest == layout.digest
    assert ModelSpec(classes=CLASSES).layout_digest is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layout": None}, "'external' has one"),
        ({"architecture": "lenet"}, "no other has"),
        ({"layout": ()}, "one at least"),
        ({"layout": TENSORS[::-1]}, "parameters come first"),
        ({"layout": TENSORS[:1] * 2}, "named twice"),
        ({"layout": ({**TENSORS[0], "shape": (2**20, 2**10)},)}, "at most"),
        ({"layout": ({**TENSORS[0], "shape": (0,)},)}, "layout.0.shape"),
        ({"layout": ({**TENSORS[0], "name": "a b"},)}, "layout.0.name"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(change, named) -> None:
    with pytest.raises(InvalidInput) as caught:
        ModelSpec.parse(external(**change))
    assert named in str(caught.value)
