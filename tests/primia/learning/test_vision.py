import subprocess
import sys

import pytest
import torch

from primia.learning import vision


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120
    )


def test_torchvision_and_torchmetrics_import_after_the_declaration() -> None:
    code = """
from primia.learning import vision
models = vision.torchvision_models()
metrics = vision.torchmetrics_functional()
import torch, torchvision
assert models.resnet18(num_classes=2).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
assert hasattr(metrics, "multiclass_auroc")
if vision.declare_operators() is not None:
    boxes = torch.zeros(1, 4)
    try:
        torchvision.ops.nms(boxes, torch.zeros(1), 0.5)
    except RuntimeError as error:
        assert "C++ ops" in str(error)
    else:
        raise SystemExit("nms without an implementation answered")
"""
    done = _run(code)
    assert done.returncode == 0, done.stderr


def test_the_declaration_is_made_once_even_by_threads() -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
from primia.learning import vision
with ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda _: vision.declare_operators(), range(8)))
assert len({id(one) for one in found}) == 1
"""
    done = _run(code)
    assert done.returncode == 0, done.stderr


def test_nothing_is_declared_where_the_extension_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    assert vision._declare_once.__wrapped__() is None
