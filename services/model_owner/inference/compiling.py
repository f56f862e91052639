"""A registered model version compiled for encrypted inference; the one user of torch here."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from primia.chassis.files import Files
from primia.errors import InvalidInput
from primia.learning.calibration import probes, unpack
from primia.learning.images import normalise
from primia.learning.models import load_model, spec_layout
from primia.learning.spec import ModelSpec
from primia.messages.inference import Accuracy, Agreement, Result
from primia.mpc.compile import compile_model, float_scores
from primia.mpc.compile_windows import agreement, calibrate
from primia.mpc.compiled import CompiledModel
from services.model_owner.registry import weights

# Of the calibration images every fourth only measures the agreement, up to this many.
_HELD_OUT = 4
_MAX_MEASURED = 16


def compile_version(
    files: Files, version_id: str, spec: ModelSpec, kind: tuple[Result, Accuracy], threads: int
) -> tuple[CompiledModel, Agreement | None]:
    """Raises UnsupportedModel naming the layer, InvalidState for a damaged weights file,
    InvalidInput where calibrated windows are asked for without images to calibrate them.

    The owner's calibration images are used where they were given; a model without BatchNorm has
    to be measured, if need be on probes.
    """
    result, accuracy = kind
    torch.set_num_threads(threads)
    vector = weights.read(weights.weights_path(files, version_id), spec_layout(spec))
    module = load_model(spec, vector)
    images = given = _given(files, version_id, spec)
    if images is None and not any(isinstance(part, nn.BatchNorm2d) for part in module.modules()):
        images = probes(spec)
    held_out = given[::_HELD_OUT][:_MAX_MEASURED] if given is not None else None
    exact = accuracy == "exact"
    model = compile_model(
        module, spec.input_shape, result=result, calibration=images, rectify_pools=exact
    )
    if not exact:
        model = calibrate(model, _for_windows(given))
    return model, _agreement(model, module, held_out)


def _for_windows(given: NDArray[np.float32] | None) -> NDArray[np.float32]:
    if given is None:
        raise InvalidInput(
            "Calibrated windows need images like those that will be classified.",
            hint="`primia models calibrate` sends some; then serve the version again.",
        )
    return np.delete(given, np.s_[::_HELD_OUT], axis=0)


def _agreement(
    model: CompiledModel, module: nn.Module, images: NDArray[np.float32] | None
) -> Agreement | None:
    if images is None:
        return None
    found = agreement(model, images, float_scores(module, images))
    return Agreement.model_validate(vars(found))


def _given(files: Files, version_id: str, spec: ModelSpec) -> NDArray[np.float32] | None:
    try:
        data = weights.calibration_path(files, version_id).read_bytes()
    except FileNotFoundError:
        return None
    return normalise(unpack(data, spec.input_shape), spec.mean, spec.std)
