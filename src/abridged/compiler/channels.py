"""Pass Graph → Graph: leave out channels that are zero or that nobody reads, between two layers.

What pruning leaves behind: a row of weights and its bias are all zero, or all weights of the next layer that would read the
channel are. Between the two layers may be whatever treats each channel by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from abridged.compiler.elementwise import EXPRESSIONS
from abridged.compiler.fold import Editor, channel_axis
from abridged.graph.graph import Graph, Node
from abridged.graph.ops import apply, infer

POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")


@dataclass(frozen=True)
class _Chain:
    """A layer, the nodes that pass its channels on, and the layer that alone reads them; `keep` has one bool per channel."""

    nodes: tuple[Node, ...]
    keep: Tensor


def drop_channels(graph: Graph) -> Graph:
    """Without channels that are zero or unread, until none is left."""
    while chain := _next(graph):
        graph = _cut(graph, chain)
    return graph


def _next(graph: Graph) -> _Chain | None:
    uses = Counter(name for node in graph for name in node.inputs) + Counter(graph.outputs)
    reader = {name: node for node in graph for name in node.inputs if name is not None and uses[name] == 1}
    for node in graph:
        if not _is_layer(graph, node):
            continue
        chain, axis = [node], channel_axis(node, graph.values[node.outputs[0]].shape)
        while (after := reader.get(chain[-1].outputs[0])) and after.inputs[0] == chain[-1].outputs[0]:
            chain.append(after)
            if _is_layer(graph, after):
                if channel_axis(after, graph.values[after.inputs[0]].shape) != axis:
                    break
                keep = _keep(graph, chain)
                if not keep.all():
                    return _Chain(tuple(chain), keep)
                break
            if not _passes_on(graph, after, axis):
                break
    return None


def _is_layer(graph: Graph, node: Node) -> bool:
    known = node.op in ("conv", "linear") and all(n is None or n in graph.constants for n in node.inputs[1:])
    return known and node.attrs.get("groups", 1) == 1


def _passes_on(graph: Graph, node: Node, axis: int) -> bool:
    """Whether each channel, along this axis, of the result comes from that channel alone."""
    others = [name for name in node.inputs[1:] if name is not None]
    if node.op in EXPRESSIONS:
        return all(name in graph.constants and graph.constants[name].tensor.dim() == 0 for name in others)
    return axis == 1 and ((node.op in POOLS and len(node.outputs) == 1) or _is_depthwise(graph, node))


def _is_depthwise(graph: Graph, node: Node) -> bool:
    if node.op != "conv" or not all(n is None or n in graph.constants for n in node.inputs[1:]):
        return False
    outputs, inputs, *_ = graph.constants[node.inputs[1] or ""].tensor.shape
    return outputs == node.attrs["groups"] and inputs == 1


def _keep(graph: Graph, chain: list[Node]) -> Tensor:
    """False for channels that are zero all the way, or that the last layer has no weight for; one always stays."""
    producer, *between, consumer = chain
    read = (_weight(graph, consumer) != 0).transpose(0, 1).flatten(1).any(1)
    filled = (_weight(graph, producer) != 0).flatten(1).any(1) | _has_bias(graph, producer)
    for node in between:
        if _is_depthwise(graph, node):
            filled = filled | _has_bias(graph, node)
        elif node.op in EXPRESSIONS and not _keeps_zero(graph, node):
            filled = torch.ones_like(filled)
    keep = read & filled
    keep[0] |= not keep.any()
    return keep


def _keeps_zero(graph: Graph, node: Node) -> bool:
    inputs = (torch.zeros(1), *(None if n is None else graph.constants[n].tensor for n in node.inputs[1:]))
    return not bool(apply(node, inputs)[0].any())


def _weight(graph: Graph, node: Node) -> Tensor:
    return graph.constants[node.inputs[1] or ""].tensor.detach()


def _has_bias(graph: Graph, node: Node) -> Tensor:
    weight, bias = _weight(graph, node), node.inputs[2]
    return torch.zeros(len(weight), dtype=torch.bool) if bias is None else graph.constants[bias].tensor.detach() != 0


def _cut(graph: Graph, chain: _Chain) -> Graph:
    edit = Editor(graph)
    last = chain.nodes[-1]
    narrow: Mapping[str, Node] = {node.outputs[0]: _narrow(edit, node, chain.keep) for node in chain.nodes[:-1]}
    weight = edit.constant(f"{last.outputs[0]}_read", _weight(graph, last)[:, chain.keep])
    for node in graph:
        node = narrow.get(node.outputs[0], node)
        if node.outputs == last.outputs:
            node = replace(node, inputs=(node.inputs[0], weight, *node.inputs[2:]))
        edit.nodes.append(node)
        if node.outputs[0] in narrow:
            edit.values |= {value.name: value for value in infer(node, edit.values)}
    return edit.done()


def _narrow(edit: Editor, node: Node, keep: Tensor) -> Node:
    """The node with only the channels to keep."""
    if node.op not in ("conv", "linear"):
        return node
    names = [
        None
        if name is None
        else edit.constant(f"{node.outputs[0]}_kept{i}", edit.constants[name].tensor.detach()[keep])
        for i, name in enumerate(node.inputs[1:])
    ]
    groups = int(keep.sum()) if node.attrs.get("groups", 1) != 1 else 1
    attrs = {**node.attrs, "groups": groups} if "groups" in node.attrs else node.attrs
    return replace(node, inputs=(node.inputs[0], *names), attrs=attrs)
