"""torch module -> float64 graph, by symbolic tracing (torch.fx; Reed et al., MLSys 2022).

torch is imported here, in ``compile_layers`` and ``compile``, and nowhere else in the package.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.fx import GraphModule, Tracer
from torch.fx import Node as TorchNode
from torch.fx.passes.shape_prop import ShapeProp

from primia.errors import InvalidInput, UnsupportedModel
from primia.mpc.compile_graph import SUPPORTED, Graph, Node, Shape, refuse
from primia.mpc.compile_layers import Call, is_tensor, shape_of, translation


def trace(module: nn.Module, input_shape: Shape) -> Graph:
    """The graph of a module in evaluation mode for one image of ``input_shape`` (C, H, W).

    Raises UnsupportedModel naming the layer; InvalidInput for a module in training mode.
    """
    for path, part in module.named_modules():
        if part.training:
            raise InvalidInput(
                f"The module{f' {path!r}' if path else ''} is in training mode.",
                hint="Call .eval() before compiling.",
            )
    traced = _symbolic(module)
    _propagate_shapes(traced, module, input_shape)
    return _Translator(traced, module, input_shape).graph()


def _symbolic(module: nn.Module) -> GraphModule:
    tracer = Tracer()
    try:
        graph = tracer.trace(module)
    except Exception as error:  # tracing runs the user's forward
        raise UnsupportedModel(
            f"{type(module).__name__} cannot be traced: {error}",
            hint="The forward pass must not depend on the values of its input. " + SUPPORTED,
        ) from error
    traced = GraphModule(tracer.root, graph)
    traced.graph.eliminate_dead_code()
    return traced


def _propagate_shapes(traced: GraphModule, module: nn.Module, input_shape: Shape) -> None:
    anchor = next(module.parameters(), torch.zeros(()))
    image = torch.zeros((1, *input_shape), dtype=anchor.dtype, device=anchor.device)
    try:
        with torch.no_grad():
            cast(Any, ShapeProp(traced)).propagate(image)
    except Exception as error:  # as above
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "unknown"
        raise UnsupportedModel(
            f"{type(module).__name__} does not run on an input of shape {input_shape}: {reason}",
            hint="Give the shape (channels, height, width) that the model was made for.",
        ) from error


class _Translator:
    def __init__(self, traced: GraphModule, module: nn.Module, input_shape: Shape) -> None:
        self._traced = traced
        self._modules = dict(module.named_modules())
        self._input_shape = input_shape
        self._values: dict[TorchNode, int] = {}
        self._nodes: list[Node] = []
        self._names: dict[str, int] = {}

    def graph(self) -> Graph:
        for node in self._traced.graph.nodes:
            if node.op == "placeholder":
                self._take_input(node)
            elif node.op == "output":
                self._finish(node)
            elif is_tensor(node):
                self._translate(node)
        return Graph(self._input_shape, tuple(self._nodes))

    def _take_input(self, node: TorchNode) -> None:
        if self._values:
            raise refuse(str(node.target), "input", "the model takes more than one input")
        self._values[node] = 0

    def _finish(self, node: TorchNode) -> None:
        result = node.args[0]
        if not isinstance(result, TorchNode) or self._values.get(result) != len(self._nodes):
            raise refuse("output", "result", "the model must return its last layer's tensor alone")
        if len(shape_of(result)) != 1 or not self._nodes:
            raise refuse("output", "result", f"scores (classes,) expected, got {shape_of(result)}")

    def _translate(self, node: TorchNode) -> None:
        call = Call(node, self._name(node), self._module(node))
        translate = translation(node, call)
        unknown = [tensor for tensor in call.tensors if tensor not in self._values]
        if translate is None or unknown or not call.tensors:
            raise call.refuse("this operation is not one the protocol has")
        call.sources = tuple(self._values[tensor] for tensor in call.tensors)
        translated = translate(call)
        if translated is None:
            self._values[node] = call.sources[0]
            return
        self._nodes.append(translated)
        self._values[node] = len(self._nodes)

    def _module(self, node: TorchNode) -> nn.Module | None:
        return self._modules[str(node.target)] if node.op == "call_module" else None

    def _name(self, node: TorchNode) -> str:
        """The module's path (a later call of the same module gets a number), or fx's name."""
        own = node.op in ("call_module", "get_attr")
        name = str(node.target) if own else node.name
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name}/{count}"
