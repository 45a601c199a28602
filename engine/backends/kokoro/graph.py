"""Surgery on ONNX graphs: find neighbours, swap nodes, cut a graph between tensors.

Edits are collected and applied at once by `Surgery.apply`, so that a search never walks over a
graph that is half changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]


class Surgery:
    """One model being edited.

    Attributes:
        nodes: in the graph's order.
        producer: tensor name -> the node that makes it.
        consumers: tensor name -> the nodes that read it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: list[onnx.NodeProto] = list(model.graph.node)
        self.producer = {out: node for node in self.nodes for out in node.output if out}
        self.consumers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.consumers[name].append(node)
        self._model = model
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._added: dict[str, Array] = {}
        self._removed: set[int] = set()
        self._inserted: dict[int, list[onnx.NodeProto]] = {}

    def is_constant(self, name: str) -> bool:
        """Is the tensor stored in the graph?"""
        return name in self._initializers

    def constant(self, name: str) -> Array:
        """The stored tensor of that name."""
        return numpy_helper.to_array(self._initializers[name])

    def scalar(self, name: str) -> float | None:
        """The stored tensor's only value; None if it is not stored or holds more than one."""
        if name not in self._initializers:
            return None
        value = self.constant(name)
        return float(value.ravel()[0]) if value.size == 1 else None

    def consumer(self, name: str) -> onnx.NodeProto:
        """The one node that reads the tensor."""
        (node,) = self.consumers[name]
        return node

    def other_input(self, node: onnx.NodeProto, name: str) -> str:
        """The other input of a node with two."""
        left, right = node.input
        return str(right if left == name else left)

    def add_constant(self, name: str, value: Array) -> str:
        """Store a tensor; the same name twice must mean the same value."""
        self._added[name] = np.ascontiguousarray(value)
        return name

    def replace(self, old: Sequence[onnx.NodeProto], new: list[onnx.NodeProto]) -> None:
        """Put `new` where the last of `old` stood."""
        self._removed.update(id(node) for node in old)
        self._inserted[id(old[-1])] = new

    def apply(self) -> None:
        """Carry out what was collected; this object is spent afterwards."""
        edited: list[onnx.NodeProto] = []
        for node in self.nodes:
            edited += self._inserted.get(id(node), [])
            if id(node) not in self._removed:
                edited.append(node)
        added = [numpy_helper.from_array(value, name) for name, value in self._added.items()]
        _rebuild(self._model, edited, [*self._model.graph.initializer, *added])


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def add_outputs(model: onnx.ModelProto, names: Iterable[str]) -> None:
    """Let a run return inner tensors too."""
    present = {out.name for out in model.graph.output}
    for name in names:
        if name not in present:
            model.graph.output.append(_value(name, onnx.TensorProto.FLOAT, None))


def cut(
    model: onnx.ModelProto,
    inputs: Mapping[str, Sequence[int | None] | None],
    outputs: Sequence[str],
) -> onnx.ModelProto:
    """The part of a model between tensors.

    Args:
        model: left as it is.
        inputs: inner float tensors to be fed, with their shapes (None: unknown); the model's own
            inputs stay inputs where they are still needed.
        outputs: tensors to return.
    """
    part = onnx.ModelProto()
    part.CopyFrom(model)
    graph = part.graph
    fed = [_value(name, onnx.TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    own = [value for value in graph.input if value.name not in inputs]
    wanted = [_value(name, onnx.TensorProto.FLOAT, None) for name in outputs]
    nodes = [
        node for node in graph.node if not all(out in inputs or not out for out in node.output)
    ]
    for node in nodes:
        for at, out in enumerate(node.output):
            if out in inputs:  # one of several outputs: the fed tensor takes its name
                node.output[at] = f"{out}.unused"
    _refill(graph.input, [*fed, *own])
    _refill(graph.output, wanted)
    _rebuild(part, nodes, list(graph.initializer))
    return part


def _value(name: str, kind: int, shape: Sequence[int | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _rebuild(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto]
) -> None:
    """Keep what the outputs need, in an order in which it can run."""
    graph = model.graph
    needed = {out.name for out in graph.output}
    producer = {out: node for node in nodes for out in node.output if out}
    ordered: list[onnx.NodeProto] = []
    done: set[int] = set()
    stack = [(producer[out.name], False) for out in graph.output]
    while stack:  # depth first: a node is placed after everything it reads
        node, ready = stack.pop()
        if id(node) in done:
            continue
        if ready:
            done.add(id(node))
            ordered.append(node)
            continue
        stack.append((node, True))
        needed.update(node.input)
        stack += [(producer[name], False) for name in node.input if name in producer]
    _refill(graph.node, ordered)
    _refill(graph.initializer, [tensor for tensor in initializers if tensor.name in needed])
    _refill(graph.input, [value for value in graph.input if value.name in needed])
    del graph.value_info[:]  # shapes of tensors that may be gone


def _refill(field: Any, values: list[Any]) -> None:
    kept = [type(value).FromString(value.SerializeToString()) for value in values]
    del field[:]  # frees the originals, hence the copies
    field.extend(kept)
