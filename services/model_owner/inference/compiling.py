"""A registered model version compiled for encrypted inference; the one user of torch here."""

from __future__ import annotations

from typing import cast

import torch

from primia.chassis.files import Files
from primia.learning.models import load_model, spec_layout
from primia.learning.spec import ModelSpec
from primia.messages.inference import Result
from primia.mpc.compile import compile_model
from primia.mpc.compiled import CompiledModel
from services.model_owner.registry import weights


def compile_version(
    files: Files, version_id: str, spec: ModelSpec, result: str, threads: int
) -> CompiledModel:
    """Raises UnsupportedModel naming the layer, InvalidState for a damaged weights file."""
    torch.set_num_threads(threads)
    vector = weights.read(weights.weights_path(files, version_id), spec_layout(spec))
    module = load_model(spec, vector)
    return compile_model(module, spec.input_shape, result=cast(Result, result))
