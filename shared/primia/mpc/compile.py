"""torch module -> CompiledModel: trace, fold, choose scales, quantise, verify.

The public entry of the plan compiler. See ``docs/protocols.md``, *Compiling a model*.
"""

from __future__ import annotations

from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from primia.errors import InvalidInput, MalformedMessage, UnsupportedModel
from primia.mpc.compile_bounds import Extent, extents
from primia.mpc.compile_emit import operations
from primia.mpc.compile_equalise import equalise
from primia.mpc.compile_float import evaluate_graph
from primia.mpc.compile_graph import (
    Conv,
    Floats,
    Graph,
    Linear,
    Node,
    Rectify,
    Shape,
    refuse,
)
from primia.mpc.compile_pools import rectified
from primia.mpc.compile_scales import (
    HEADROOM_BITS,
    Scales,
    choose_scales,
    no_headroom,
    quantise,
)
from primia.mpc.compile_trace import trace
from primia.mpc.compiled import CompiledModel
from primia.mpc.fold import fold
from primia.mpc.oracle import encode, evaluate
from primia.mpc.plan import RESULTS, Plan

Result = Literal["scores", "label"]

# The folded graph must repeat the module's own float32 outputs to this share of the largest.
_FIDELITY = 1e-3
# While torch.fx traces a module, calls of any other module in the process go astray.
_TRACING = Lock()


def compile_model(
    module: nn.Module,
    input_shape: Shape,
    *,
    result: Result = "scores",
    calibration: NDArray[Any] | None = None,
    activation_bits: int = 10,
    rectify_pools: bool = True,
) -> CompiledModel:
    """Compile a module in evaluation mode for one image of ``input_shape`` (C, H, W).

    ``calibration``: representative normalised images (N, C, H, W), float. They raise what
    BatchNorm's statistics promise of a layer, and stand in where a model has none.
    ``rectify_pools``: a ReLU behind a pool costs no request of its own, but more comparisons.
    No other thread may call a torch module meanwhile, unless it compiles one too.
    Raises UnsupportedModel naming the layer; InvalidInput for unusable arguments.
    """
    if result not in RESULTS:
        raise InvalidInput(f"The result is {result!r}; it must be 'scores' or 'label'.")
    images = _check_arguments(input_shape, calibration, activation_bits)
    with _TRACING:
        graph = fold(trace(module, input_shape))
        _check_readers(graph)
        _check_fidelity(module, graph, _probe(input_shape))
    magnitudes = _magnitudes(graph, images)
    if images is not None:  # bounds that were not measured are too wide to share out bits by
        graph, magnitudes = equalise(graph, magnitudes)
    scales = choose_scales(graph, magnitudes, activation_bits)
    model = _quantised(graph, scales, input_shape, result)
    if rectify_pools:
        model = CompiledModel(rectified(model.plan), model.weights)
    if images is not None:
        verify_headroom(model, images)
    return model


def float_scores(module: nn.Module, images: NDArray[Any]) -> Floats:
    """The module's own outputs, (N, classes), while no other module of the process is traced."""
    with _TRACING, torch.inference_mode():
        found = module(torch.from_numpy(np.ascontiguousarray(images, np.float32)))
    return np.asarray(found.double().numpy())


def _check_arguments(
    input_shape: Shape, calibration: NDArray[Any] | None, activation_bits: int
) -> Floats | None:
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise InvalidInput(f"The input shape {input_shape} is not (channels, height, width).")
    if not 4 <= activation_bits <= 16:
        raise InvalidInput(f"activation_bits is {activation_bits}; it must be from 4 to 16.")
    if calibration is None:
        return None
    images = np.asarray(calibration, np.float64)
    if images.ndim != 4 or images.shape[1:] != input_shape or not len(images):
        raise InvalidInput(f"Calibration images are {images.shape}, not (N, *{input_shape}).")
    if not np.isfinite(images).all():
        raise InvalidInput("Calibration images hold a value that is not finite.")
    return images


def _probe(shape: Shape) -> Floats:
    """A fixed image with structure at every scale, (1, C, H, W), within [-1, 1]."""
    size = int(np.prod(shape))
    return np.sin(np.arange(size, dtype=np.float64) ** 1.5).reshape(1, *shape)


def _check_fidelity(module: nn.Module, graph: Graph, images: Floats) -> None:
    """The graph must compute what the module computes: a second, independent look at what
    tracing may have missed (in-place operations on shared values, hooks)."""
    anchor = next(module.parameters(), torch.zeros(()))
    with torch.no_grad():
        given = torch.from_numpy(images).to(anchor.device, anchor.dtype)
        wanted = module(given).to("cpu", torch.float64).numpy()
    found = evaluate_graph(graph, images)[-1]
    worst = float(np.abs(found - wanted).max())
    if not worst <= _FIDELITY * max(1e-3, float(np.abs(wanted).max())):
        raise UnsupportedModel(
            f"{type(module).__name__} computes something else than its traced layers "
            f"(largest difference {worst:.3g}).",
            hint="Look for in-place operations on a value that is read again.",
        )


def _check_readers(graph: Graph) -> None:
    """Every linear layer must read the image or a ReLU's result (through pooling, addition or
    flattening): P1's share of anything else is not the dealer's to know."""
    ready = [True]
    for node in graph.nodes:
        known = all(ready[source] for source in node.sources)
        if isinstance(node, Linear) and not known:
            raise refuse(node.name, _kind(node), "it reads a linear layer without a ReLU between")
        ready.append(isinstance(node, Rectify) or (known and not isinstance(node, Linear)))


def _kind(node: Node) -> str:
    return "Conv2d" if isinstance(node, Conv) else node.kind


def _magnitudes(graph: Graph, images: Floats | None) -> tuple[float, ...]:
    found = extents(graph)
    if images is None:
        return tuple(extent.magnitude for extent in found)
    peaks = np.zeros(len(found))
    for image in images:
        values = evaluate_graph(graph, image[None])
        peaks = np.maximum(peaks, [float(np.abs(value).max()) for value in values])
    return tuple(_combined(extent, float(p)) for extent, p in zip(found, peaks, strict=True))


def _combined(extent: Extent, peak: float) -> float:
    """Statistics may be raised by what was seen; without them what was seen is the measure."""
    return peak if extent.statistics is None else max(extent.magnitude, peak)


def _quantised(graph: Graph, scales: Scales, shape: Shape, result: Result) -> CompiledModel:
    weights = {
        node.name: quantise(node, scales.weights[i], scales.values[i + 1])
        for i, node in enumerate(graph.nodes)
        if isinstance(node, Linear)
    }
    try:
        plan = Plan(shape, scales.values[0], tuple(operations(graph, scales)), result)
        return CompiledModel(plan, weights)
    except MalformedMessage as error:
        raise UnsupportedModel(f"The compiled plan is not sound. {error.detail}") from error


def verify_headroom(model: CompiledModel, images: Floats) -> None:
    """Run images (N, C, H, W) through the oracle: none may use up the headroom; a difference of
    two values in a max gate may take one of its bits. Raises UnsupportedModel naming the layer."""
    scales = {
        op.layer: bits for op, bits in zip(model.plan.ops, model.plan.scales()[1:], strict=True)
    }
    for image in images:
        peaks = evaluate(model, encode(model.plan, image[None])).peaks
        for layer, peak in peaks.items():
            if peak > 2.0 ** (1 - HEADROOM_BITS):
                raise no_headroom(layer, peak * 2.0 ** (31 - scales.get(layer, 0)))
