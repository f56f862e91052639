"""A registered model version compiled for encrypted inference; the one user of torch here."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from primia.chassis.files import Files
from primia.learning.calibration import probes, unpack
from primia.learning.images import normalise
from primia.learning.models import load_model, spec_layout
from primia.learning.spec import ModelSpec
from primia.messages.inference import Result
from primia.mpc.compile import compile_model
from primia.mpc.compiled import CompiledModel
from services.model_owner.registry import weights


def compile_version(
    files: Files, version_id: str, spec: ModelSpec, result: str, threads: int
) -> CompiledModel:
    """Raises UnsupportedModel naming the layer, InvalidState for a damaged weights file.

    The owner's calibration images are used where they were given; a model without BatchNorm has
    to be measured, if need be on probes.
    """
    torch.set_num_threads(threads)
    vector = weights.read(weights.weights_path(files, version_id), spec_layout(spec))
    module = load_model(spec, vector)
    images = _given(files, version_id, spec)
    if images is None and not any(isinstance(part, nn.BatchNorm2d) for part in module.modules()):
        images = probes(spec)
    return compile_model(module, spec.input_shape, result=cast(Result, result), calibration=images)


def _given(files: Files, version_id: str, spec: ModelSpec) -> NDArray[np.float32] | None:
    try:
        data = weights.calibration_path(files, version_id).read_bytes()
    except FileNotFoundError:
        return None
    return normalise(unpack(data, spec.input_shape), spec.mean, spec.std)
