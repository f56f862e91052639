"""torchvision and torchmetrics on a torch that was built without CUDA.

torchvision's wheel carries a C++ extension linked against CUDA torch. With a CPU build of torch
that extension cannot be loaded, and importing torchvision (or torchmetrics, which imports it)
fails because Python code registers kernels for operators that were never declared. Declaring the
two operators without an implementation is enough: models, transforms and tracing work, and box
operations raise torchvision's own error. On a CUDA build the extension loads and nothing is
declared. Import both libraries through this module only.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch.library import Library

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_LOCK = threading.Lock()  # a second declaration is an error, and a worker's tasks are threads


def _extension() -> Path | None:
    """torchvision's ``_C`` extension, found without importing torchvision."""
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).glob("_C*")):
            if file.suffix in {".so", ".pyd"}:
                return file
    return None


def _loads(extension: Path | None) -> bool:
    if extension is None:
        return False
    try:
        torch.ops.load_library(str(extension))  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError):
        return False
    return True


def declare_operators() -> Library | None:
    """Declare torchvision's missing operators, once a process; None where none are missing."""
    with _LOCK:
        return _declare_once()


@cache  # the declarations last as long as the returned object: the cache keeps it
def _declare_once() -> Library | None:
    if _loads(_extension()):
        return None
    library = Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    library.define(f"nms{_SIGNATURE}")  # type: ignore[no-untyped-call]
    library.define(f"qnms{_SIGNATURE}")  # type: ignore[no-untyped-call]
    return library


def torchvision_models() -> ModuleType:
    declare_operators()
    return importlib.import_module("torchvision.models")


def torchmetrics_functional() -> ModuleType:
    declare_operators()
    return importlib.import_module("torchmetrics.functional.classification")


def torchmetrics_image() -> ModuleType:
    declare_operators()
    return importlib.import_module("torchmetrics.image")


def torchmetrics_functional_image() -> ModuleType:
    declare_operators()
    return importlib.import_module("torchmetrics.functional.image")


def torchvision_transforms() -> ModuleType:
    """torchvision's transforms v2 as functions."""
    declare_operators()
    return importlib.import_module("torchvision.transforms.v2.functional")
