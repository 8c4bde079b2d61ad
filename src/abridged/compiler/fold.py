"""Passes Graph → Graph: compute once, now, whatever does not depend on the input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from abridged.graph.graph import Constant, Graph, Node, Value
from abridged.graph.ops import apply, infer


class Editor:
    """A graph being rewritten node by node: nodes kept so far, values and constants that were added."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[Node] = []
        self.values = dict(graph.values)
        self.constants = dict(graph.constants)

    def constant(self, name: str, tensor: Tensor) -> str:
        self.constants[name] = Constant(tensor)
        self.values[name] = Value(name, tuple(tensor.shape), tensor.dtype)
        return name

    def tensor(self, name: str | None) -> Tensor | None:
        return None if name is None else self.constants[name].tensor.detach()

    def add(self, node: Node) -> str:
        """Append a node of one output, whose value is inferred."""
        (value,) = infer(node, self.values)
        self.values[value.name] = value
        self.nodes.append(node)
        return value.name

    def rename(self, name: str, new: str) -> None:
        """Give the output of the last node the name by which others know it."""
        assert self.nodes[-1].outputs == (name,)
        self.nodes[-1] = replace(self.nodes[-1], outputs=(new,))

    def done(self) -> Graph:
        return _named(replace(self.graph, nodes=tuple(self.nodes), values=self.values, constants=self.constants))


def fold_constants(graph: Graph) -> Graph:
    """Replace every node whose inputs are all constants by its results."""
    edit = Editor(graph)
    for node in graph:
        inputs = [name for name in node.inputs if name is not None]
        if not inputs or not all(name in edit.constants for name in inputs):
            edit.nodes.append(node)
            continue
        for name, tensor in zip(node.outputs, apply(node, tuple(map(edit.tensor, node.inputs))), strict=True):
            edit.constant(name, tensor)
    return edit.done()


def fold_batch_norms(graph: Graph) -> Graph:
    """Multiply a batch norm into the weights of the convolution or linear layer that alone feeds it."""
    return _without_batch_norms(graph, absorb=True)


def lower_batch_norms(graph: Graph) -> Graph:
    """Every batch norm as x · scale + shift."""
    return _without_batch_norms(graph, absorb=False)


def _without_batch_norms(graph: Graph, absorb: bool) -> Graph:
    edit = Editor(graph)
    uses = Counter(name for node in graph for name in node.inputs) + Counter(graph.outputs)
    producers: dict[str, int] = {}
    for node in graph:
        if node.op != "batch_norm" or any(name is not None and name not in edit.constants for name in node.inputs[1:]):
            producers |= dict.fromkeys(node.outputs, len(edit.nodes))
            edit.nodes.append(node)
            continue
        scale, shift = _affine(edit, node)
        x, y = node.inputs[0], node.outputs[0]
        assert x is not None
        before = edit.nodes[producers[x]] if x in producers else None
        if absorb and before is not None and uses[x] == 1 and _absorbs(before, edit):
            edit.nodes[producers[x]] = _absorbed(edit, before, scale, shift, y)
            producers[y] = producers[x]
        else:
            edit.nodes += _as_affine(edit, node, scale, shift)
    return edit.done()


def _affine(edit: Editor, node: Node) -> tuple[Tensor, Tensor]:
    """scale = weight / √(var + eps), shift = bias − mean · scale, in float64."""
    weight, bias, mean, var = (None if t is None else t.double() for t in map(edit.tensor, node.inputs[1:]))
    assert mean is not None
    assert var is not None
    deviation = torch.sqrt(var + node.real("eps"))
    scale = deviation.reciprocal() if weight is None else weight / deviation
    return scale, (0 if bias is None else bias) - mean * scale


def channel_axis(layer: Node, shape: Sequence[int]) -> int:
    """Along which axis of a value of this shape, which it reads or writes, a layer has its channels."""
    return len(shape) - 1 if layer.op == "linear" else 1


def _absorbs(node: Node, edit: Editor) -> bool:
    """Whether the layer has weights of its own, and its outputs along axis 1, as a batch norm has its channels."""
    own = node.op in ("conv", "conv_transpose", "linear") and all(
        name is None or name in edit.constants for name in node.inputs[1:]
    )
    return own and channel_axis(node, edit.values[node.outputs[0]].shape) == 1


def _absorbed(edit: Editor, node: Node, scale: Tensor, shift: Tensor, y: str) -> Node:
    weight, bias = edit.tensor(node.inputs[1]), edit.tensor(node.inputs[2])
    assert weight is not None
    if node.op == "conv_transpose":  # (I, O / G, *kernel)
        groups = node.integer("groups")
        grouped = scale.reshape(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1).flatten(0, 1)
        factor = grouped.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))
    else:
        factor = scale.reshape(-1, *[1] * (weight.dim() - 1))
    scaled = (weight.double() * factor).to(weight.dtype)
    moved = (shift + (0 if bias is None else bias.double() * scale)).to(weight.dtype)
    names = edit.constant(f"{y}_weight", scaled), edit.constant(f"{y}_bias", moved)
    return replace(node, inputs=(node.inputs[0], *names), outputs=(y,))


def _as_affine(edit: Editor, node: Node, scale: Tensor, shift: Tensor) -> list[Node]:
    x, y = node.inputs[0], node.outputs[0]
    value = edit.values[y]
    shape = (-1, *[1] * (len(value.shape) - 2))
    scaled = f"{y}_scaled"
    edit.values[scaled] = replace(value, name=scaled)
    scale_name = edit.constant(f"{y}_scale", scale.to(value.dtype).reshape(shape))
    shift_name = edit.constant(f"{y}_shift", shift.to(value.dtype).reshape(shape))
    return [
        replace(node, op="mul", inputs=(x, scale_name), outputs=(scaled,), attrs={}),
        replace(node, op="add", inputs=(scaled, shift_name), outputs=(y,), attrs={}),
    ]


def drop_dead(graph: Graph) -> Graph:
    """Drop nodes that no output needs, and the values and constants that only they named."""
    live = set(graph.outputs)
    nodes: list[Node] = []
    for node in reversed(graph.nodes):
        if live.intersection(node.outputs):
            nodes.insert(0, node)
            live.update(name for name in node.inputs if name is not None)
            live.update(node.outputs)
    return _named(replace(graph, nodes=tuple(nodes)))


def _named(graph: Graph) -> Graph:
    """Without the values and constants that no node names any more."""
    names = {name for node in graph for name in (*node.inputs, *node.outputs)} | {*graph.inputs, *graph.outputs}
    return replace(
        graph,
        values={name: value for name, value in graph.values.items() if name in names},
        constants={name: constant for name, constant in graph.constants.items() if name in names},
    )
