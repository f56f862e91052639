"""Weights that others have trained (torchvision's ImageNet files) as a model of the registry.

A file is a dictionary of names and tensors, as safetensors or as torch saved it. Names are
torchvision's. What differs is adapted: a first convolution that reads colour becomes one for grey
(its three channels added up: grey is the same value in each), a last layer for other classes
keeps the weights of the specification's seed, and a model with GroupNorm takes BatchNorm's weights
and biases alone: it normalises by no running statistics.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from primia.errors import InvalidInput
from primia.learning.hashed import MAX_FILE_BYTES, check_hash
from primia.learning.layout import InvalidState, Slot, Vector, check_vector
from primia.learning.models import create_model, flatten, state_layout
from primia.learning.spec import ModelSpec
from primia.learning.vision import torchvision_models
from primia.learning.zoo import HEADS, first_convolution

State = Mapping[str, torch.Tensor]
_RUNNING = (".running_mean", ".running_var")

# torchvision's DenseNet files are older than its module: norm.1 has become norm1.
_OLD_DENSE = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def imagenet_url(architecture: str) -> str:
    """Where torchvision keeps its first ImageNet weights. Raises InvalidInput if it has none."""
    if architecture not in HEADS:
        raise InvalidInput(f"There are no ImageNet weights for {architecture}.")
    url: str = torchvision_models().get_model_weights(architecture)["IMAGENET1K_V1"].url
    return url


def read_file(path: Path) -> State:
    """The file's tensors. Raises InvalidInput for what is too large, damaged or no such file."""
    if not path.is_file():
        raise InvalidInput(f"There is no file {path.name}.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InvalidInput(f"{path.name} has more than {MAX_FILE_BYTES >> 20} MiB.")
    check_hash(path)
    if path.suffix == ".safetensors":
        try:
            return load_safetensors(path.read_bytes())
        except SafetensorError as error:
            raise InvalidInput(f"{path.name} is no safetensors file: {error}.") from None
    return _read_torch(path)


def _read_torch(path: Path) -> State:
    try:
        # The user's own file, on the user's own machine, with torch's restricted reader: tensors in
        # plain containers and nothing else. Services take safetensors alone.
        found = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as error:  # noqa: BLE001  # its own error types vary from release to release
        raise InvalidInput(
            f"{path.name} is not a file of weights alone ({type(error).__name__}).",
            hint="Save the model's state_dict(), best as safetensors.",
        ) from None
    if not isinstance(found, Mapping) or not found:
        raise InvalidInput(f"{path.name} holds no dictionary of tensors.")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise InvalidInput(f"{path.name} holds something that is no tensor: {name!r:.80}.")
    return found


def adapt(state: State, spec: ModelSpec) -> Vector:
    """The specification's state with these weights, float32 (layout.size,).

    Raises InvalidState naming the tensor that does not fit.
    """
    module = create_model(spec)
    vector, layout = flatten(module), state_layout(module)
    given = {_OLD_DENSE.sub(r"\1\2", name): tensor for name, tensor in state.items()}
    wanted = {slot.name for slot in layout.slots}
    left_out = ("num_batches_tracked", *(_RUNNING if spec.norm == "group" else ()))
    unknown = sorted(name for name in given.keys() - wanted if not name.endswith(left_out))
    if unknown:
        raise InvalidState(f"Tensor {unknown[0][:200]!r} is not part of {spec.architecture}.")
    for slot in layout.slots:
        if slot.name not in given:
            raise InvalidState(f"Tensor {slot.name!r} is missing in the file.")
        values = _fitted(given[slot.name], slot, spec)
        if values is not None:
            vector[slot.span] = values.reshape(-1)
    return check_vector(vector, layout)


def _fitted(tensor: torch.Tensor, slot: Slot, spec: ModelSpec) -> NDArray[np.float32] | None:
    """The tensor in the slot's shape; None: the last layer's own weights stay."""
    values = tensor.detach().to(torch.float32).cpu().numpy()
    first = f"{first_convolution(spec.architecture)}.weight"
    if slot.name == first and spec.channels == 1 and values.ndim == 4:
        values = values.sum(axis=1, keepdims=True)  # (out, 1, height, width)
    if values.shape == slot.shape:
        return np.ascontiguousarray(values)
    head = HEADS.get(spec.architecture)
    if slot.name in (f"{head}.weight", f"{head}.bias") and values.shape[1:] == slot.shape[1:]:
        return None
    raise InvalidState(f"Tensor {slot.name!r} is {values.shape}; {slot.shape} is needed.")
