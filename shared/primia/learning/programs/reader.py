"""Walking the graph of an ExportedProgram: operators with arguments, layers with their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from primia.errors import InvalidInput
from primia.learning.programs import document as d
from primia.learning.programs.document import Program


class UnsupportedOperator(InvalidInput):
    code = "unsupported-operator"
    title = "The model cannot be said as a program"


def image_of(exported: ExportedProgram) -> tuple[int, int, int]:
    """(C, H, W) of the example, whose batch must have been left open."""
    names = exported.graph_signature.user_inputs
    nodes = [node for node in exported.graph.nodes if node.name in names]
    shape = tuple(nodes[0].meta["val"].shape) if len(nodes) == 1 else ()
    if len(shape) != 4 or nodes[0].meta["val"].dtype != torch.float32:
        raise UnsupportedOperator("The model must take one float32 tensor (N, C, H, W).")
    if isinstance(shape[0], int) or not all(isinstance(size, int) for size in shape[1:]):
        raise UnsupportedOperator(
            "The model must be exported for any batch, and for images of one size.",
            hint='Pass dynamic_shapes=({0: torch.export.Dim("batch", min=2)},).',
        )
    return shape[1], shape[2], shape[3]


class Call:
    """One operator with its arguments by name, as torch's own schema has them."""

    def __init__(self, node: Node) -> None:
        self.node = node
        target: Any = node.target
        self.name = target._schema.name.removeprefix("aten::") if _is_aten(node) else str(target)
        self.arguments: dict[str, Any] = {}
        if _is_aten(node):
            for position, each in enumerate(target._schema.arguments):
                value = each.default_value if each.has_default_value() else None
                if position < len(node.args):
                    value = node.args[position]
                self.arguments[each.name] = node.kwargs.get(each.name, value)

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def first(self) -> Any:
        """The tensor that the operator works on."""
        return next(iter(self.arguments.values()))

    def pair(self, name: str) -> tuple[int, int]:
        found = self.arguments[name]
        values = [found] if isinstance(found, int) else list(found)
        if len(values) == 1:
            values *= 2
        if len(values) != 2 or not all(isinstance(value, int) for value in values):
            raise self.refuse(f"{name} {found!r} is not a pair of numbers")
        return values[0], values[1]

    def dimension(self, name: str, value: int | None = None) -> int:
        """Counted from the front. The batch's is refused."""
        found = self.arguments[name] if value is None else value
        tensor = self.first()
        tensor = tensor[0] if isinstance(tensor, list | tuple) else tensor
        at: int = found % len(tensor.meta["val"].shape)
        if at == 0:
            raise self.refuse("it mixes the images of a batch")
        return at

    def shape(self) -> tuple[int, ...]:
        return tuple(self.node.meta["val"].shape)[1:]

    def refuse(self, reason: str) -> UnsupportedOperator:
        stack = list(self.node.meta.get("nn_module_stack", {}).values())
        path = stack[-1][0].removeprefix("L__self__").lstrip(".") if stack else ""
        where = f" in {path}" if path else ""
        return UnsupportedOperator(f"{self.name}{where}: {reason}.")


def _is_aten(node: Node) -> bool:
    return getattr(node.target, "namespace", "") == "aten"


Handler = Callable[["Reader", Call], d.AnyStep | None]  # None: the identity


class Reader:
    """Steps and layers so far. ``handlers``: operator -> what becomes of it (``operators``);
    ``ignored``: operators that compute nothing of the model's."""

    def __init__(
        self, exported: ExportedProgram, handlers: Mapping[str, Handler], ignored: frozenset[str]
    ) -> None:
        signature = exported.graph_signature
        self._exported, self._handlers, self._ignored = exported, handlers, ignored
        self._names: Mapping[str, str] = {
            **signature.inputs_to_parameters, **signature.inputs_to_buffers,
        }  # fmt: skip
        self._inputs, self._outputs = set(signature.user_inputs), signature.user_outputs
        self._values: dict[Node, int] = {}
        self._layers: dict[str, d.AnyLayer] = {}
        self.steps: list[d.AnyStep] = []
        self.training: bool | None = None

    def read(self) -> Program:
        image = image_of(self._exported)
        for node in self._exported.graph.nodes:
            if node.name in self._inputs:
                self._values[node] = 0
            elif node.op == "call_function":
                self._take(node)
        last = [node for node in self._exported.graph.nodes if node.name in self._outputs]
        if len(last) != 1 or self._values.get(last[0]) is None:
            raise UnsupportedOperator("The model must give one tensor, the scores of the classes.")
        self._until(self._values[last[0]])
        document = {
            "input": image,
            "layers": [layer.model_dump() for layer in self._layers.values()],
            "steps": [step.model_dump() for step in self.steps],
        }
        return Program.parse(Program.model_validate(document).text)

    def _until(self, last: int) -> None:
        """The result is the last step's: what follows it is used by nothing."""
        del self.steps[last:]
        applied = {step.layer for step in self.steps if isinstance(step, d.Apply)}
        self._layers = {path: each for path, each in self._layers.items() if path in applied}

    def _take(self, node: Node) -> None:
        call = Call(node)
        if call.name in self._ignored or self._counts(call):
            return
        name = call.name.removesuffix("_")
        handler = self._handlers.get(name)
        if handler is None:
            raise call.refuse("a program has no such operator")
        step = handler(self, call)
        if step is None:
            self._values[node] = self.value(call, call.first())
        else:
            self.steps.append(step)
            self._values[node] = len(self.steps)
        if call.name.endswith("_"):  # in place: whoever reads the tensor later reads the result
            self._values[call.first()] = self._values[node]

    def _counts(self, call: Call) -> bool:
        """BatchNorm's count of batches, which is no part of a model's state."""
        given = call.first() if call.arguments else None
        name = self._names.get(getattr(given, "name", ""), "")
        return call.name == "add_" and name.endswith("num_batches_tracked")

    def value(self, call: Call, given: Any) -> int:
        if isinstance(given, Node) and given in self._values:
            return self._values[given]
        name = self._names.get(getattr(given, "name", ""), "a constant")
        raise call.refuse(
            f"it works on {name!r}, not on the result of a step; weights belong in torch.nn layers"
        )

    def path(self, call: Call, **tensors: str) -> str:
        """Of the torch.nn layer whose tensors the operator reads: argument -> name within it."""
        found = {
            self._names.get(getattr(call[argument], "name", ""), "").rpartition(".")
            for argument in tensors
            if call[argument] is not None
        }
        paths, names = {each[0] for each in found}, {each[2] for each in found}
        if len(paths) != 1 or paths == {""} or not names <= set(tensors.values()):
            raise call.refuse("its weights are not those of one torch.nn layer")
        return paths.pop()

    def apply(self, call: Call, layer: d.AnyLayer) -> d.Apply:
        before = self._layers.setdefault(layer.path, layer)
        if before != layer:
            raise call.refuse(f"layer {layer.path} is used in two ways")
        return d.Apply(layer=layer.path, of=self.value(call, call.first()))

    def mode(self, call: Call, training: bool) -> None:
        if self.training not in (None, training):
            raise call.refuse("parts of the model are in training and others in evaluation mode")
        self.training = training

    def size(self, call: Call, argument: str, position: int) -> int:
        node = call[argument]
        return int(node.meta["val"].shape[position])

    def unused(self, stem: str) -> str:
        number = len(self.steps) + 1
        return f"{stem}_{number}"
