"""Group nodes that run as one kernel: a linear operator with what follows it element by element, or a chain of such ops."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from abridged.compiler.elementwise import EXPRESSIONS, expression, number
from abridged.graph.graph import Graph, Node


@dataclass(frozen=True, slots=True)
class Group:
    """`nodes` run at once, where the last one stood. The first is the anchor; `operands` are what the others read besides its
    result, in `text` as `{0}`, `{1}` …, and the anchor's own result is `v`. An element-wise anchor is a part of `text` itself."""

    nodes: tuple[Node, ...]
    operands: tuple[str, ...]
    text: str

    @property
    def anchor(self) -> Node:
        return self.nodes[0]

    @property
    def output(self) -> str:
        return self.nodes[-1].outputs[0]


ANCHORS = ("conv", "linear")


def in_vectors(graph: Graph, node: Node) -> bool:
    """Is the node an expression on vectors of floats?"""
    names = (*node.inputs, *node.outputs)
    return node.op in EXPRESSIONS and all(graph.values[name].dtype == torch.float32 for name in names if name)


def fuse(graph: Graph, enabled: bool = True) -> list[Group]:
    """Every node of the graph, in groups, in an order in which they can run."""
    uses = Counter(name for node in graph for name in node.inputs) + Counter(graph.outputs)
    position = {name: i for i, node in enumerate(graph.nodes) for name in node.outputs}
    reader = {name: node for node in graph for name in node.inputs if name is not None and uses[name] == 1}
    taken: set[int] = set()
    groups: dict[int, Group] = {}
    for i, node in enumerate(graph.nodes):
        if i in taken:
            continue
        chain = [node]
        while enabled and (following := reader.get(chain[-1].outputs[0])):
            if position[following.outputs[0]] in taken or not _joins(graph, chain, following):
                break
            chain.append(following)
        last = position[chain[-1].outputs[0]]
        taken.update(position[member.outputs[0]] for member in chain)
        groups[last] = _group(graph, chain)
    return [groups[i] for i in sorted(groups)]


def _joins(graph: Graph, chain: list[Node], node: Node) -> bool:
    anchor, result = chain[0], chain[-1].outputs[0]
    if not in_vectors(graph, node) or graph.values[node.outputs[0]].shape != graph.values[result].shape:
        return False
    if in_vectors(graph, anchor):
        return len(set(_group(graph, [*chain, node]).operands)) <= 6
    if anchor.op not in ANCHORS:
        return False
    # One residual of the result's own shape; it is loaded next to the accumulators.
    operands = _group(graph, [*chain, node]).operands
    shape = graph.values[result].shape
    return len(operands) <= 1 and all(graph.values[name].shape == shape for name in operands)


def _group(graph: Graph, chain: list[Node]) -> Group:
    operands: list[str] = []
    texts: dict[str, str] = {}
    head, rest = (None, chain) if in_vectors(graph, chain[0]) else (chain[0], chain[1:])
    if head is not None:
        texts[head.outputs[0]] = "v"

    def text(name: str) -> str:
        if name in texts:
            return texts[name]
        constant = graph.constants.get(name)
        if constant is not None and constant.tensor.dim() == 0:
            return number(float(constant.tensor.detach()))
        if name not in operands:
            operands.append(name)
        return f"{{{operands.index(name)}}}"

    for node in rest:
        texts[node.outputs[0]] = expression(node, [text(name) for name in node.inputs if name is not None])
    return Group(tuple(chain), tuple(operands), texts[chain[-1].outputs[0]] if rest else "v")
