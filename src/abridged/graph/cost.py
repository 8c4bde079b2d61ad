"""What a node costs in theory: its multiply-accumulates, all of them and those whose weight is not zero.

Only ops that multiply and accumulate have an entry in COSTS; every other op costs 0 MACs. Counts are exact integers and
agree with `torch.utils.flop_counter` (which counts two operations per MAC): zero padding counts as if it were data,
biases, activations and normalizations do not count, a causal or masked attention counts in full.

Effective MACs are those left when every product with a zero weight is skipped. All ops here use each element of a weight
equally often (a convolution's, once per sample and output position), so they are `macs · nonzeros / elements`, exactly.
A weight is an operand that is known before the network runs: a constant, or what is computed from constants alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from abridged.graph.graph import Graph, Node
from abridged.graph.ops import apply
from abridged.tables import Table

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiply-accumulates of one node: dense, and with zero weights skipped."""

    macs: int
    effective_macs: int


# (node, shape of each input or None, shape of each output) → MACs.
COSTS = Table[Callable[[Node, tuple[Shape, ...], tuple[Shape, ...]], int]]("cost")


def cost(node: Node, graph: Graph, weights: Mapping[str, Tensor] | None = None) -> Cost:
    """The MACs of a node of a graph. `weights`: the tensors known before it runs, `known(graph)` if not given.

    Give `weights` when you ask for many nodes: finding them runs everything that depends on constants alone."""
    if node.op not in COSTS:
        return Cost(0, 0)
    shapes = tuple(graph.values[name].shape if name else () for name in node.inputs)
    macs = COSTS[node.op](node, shapes, tuple(graph.values[name].shape for name in node.outputs))
    held = known(graph) if weights is None else weights
    # Biases and masks are operands too, but their zeros skip no product.
    operands = [held[name] for name in _multiplied(node) if name in held and held[name].numel()]
    return Cost(macs, min((macs * nonzeros(w) // w.numel() for w in operands), default=macs))


def nonzeros(tensor: Tensor) -> int:
    return int(torch.count_nonzero(tensor))


def known(graph: Graph) -> dict[str, Tensor]:
    """Every tensor that depends on no input: the constants, and what nodes compute from them alone. Of a module on the
    meta device, which has no values, nothing is known."""
    constants = graph.constants.items()
    found = {name: constant.tensor.detach() for name, constant in constants if not constant.tensor.is_meta}
    for node in graph:
        if all(name in found for name in node.inputs if name):
            results = apply(node, tuple(found[name] if name else None for name in node.inputs))
            found |= zip(node.outputs, results, strict=True)
    return found


def _multiplied(node: Node) -> list[str]:
    """The inputs whose every element is multiplied, and all equally often."""
    if node.op == "attention":
        return []  # its products are of activations, whatever they are made of
    if node.op != "einsum":
        return [name for name in node.inputs[:2] if name]
    left, _, right = str(node.attrs["equation"]).replace(" ", "").partition("->")
    terms = left.split(",")
    # Not so on a diagonal (ii), nor where an axis is summed before the product (j of ij,k->ik).
    plain = all(term.count(axis) == 1 for term in terms for axis in set(term) - {"."})
    shared = all(left.count(axis) > 1 or axis in right for axis in set(left) - {".", ","})
    return [name for name in node.inputs if name] if len(terms) == 2 and plain and shared else []


@COSTS.entry("conv")
def conv(node: Node, inputs: tuple[Shape, ...], outputs: tuple[Shape, ...]) -> int:
    """N · output positions · elements of the weight (O, I / groups, *kernel)."""
    return outputs[0][0] * math.prod(outputs[0][2:]) * math.prod(inputs[1])


@COSTS.entry("conv_transpose")
def conv_transpose(node: Node, inputs: tuple[Shape, ...], outputs: tuple[Shape, ...]) -> int:
    """N · input positions · elements of the weight (I, O / groups, *kernel)."""
    return inputs[0][0] * math.prod(inputs[0][2:]) * math.prod(inputs[1])


@COSTS.entry("linear")
def linear(node: Node, inputs: tuple[Shape, ...], outputs: tuple[Shape, ...]) -> int:
    """Rows of x (..., I) · elements of the weight (O, I)."""
    return math.prod(inputs[0][:-1]) * math.prod(inputs[1])


@COSTS.entry("matmul")
def matmul(node: Node, inputs: tuple[Shape, ...], outputs: tuple[Shape, ...]) -> int:
    """Elements of the output (..., M, N) · K."""
    return math.prod(outputs[0]) * inputs[0][-1]


@COSTS.entry("attention")
def attention(node: Node, inputs: tuple[Shape, ...], outputs: tuple[Shape, ...]) -> int:
    """q · kᵀ and the product with v: (..., T) · S · (E + V)."""
    query, key, value = inputs[:3]
    return math.prod(outputs[0][:-1]) * key[-2] * (query[-1] + value[-1])


@COSTS.entry("einsum")
def einsum(node: Node, inputs: tuple[Shape, ...], outputs: tuple[Shape, ...]) -> int:
    """Two operands at a time, from the left; a product that sums over no shared axis is elementwise and costs 0."""
    equation = str(node.attrs["equation"])
    factors, kept = terms(equation, [len(shape) for shape in inputs])
    sizes: dict[str, int] = {}
    for term, shape in zip(factors, inputs, strict=True):
        for axis, size in zip(term, shape, strict=True):
            sizes[axis] = max(size, sizes.get(axis, 1))
    macs, left = 0, set(factors[0])
    for i, right in enumerate(map(set, factors[1:]), start=1):
        later = set(kept).union(*factors[i + 1 :])
        # What one side alone has and nobody needs later is summed before the product.
        both = (left & right) | ((left | right) & later)
        if (left & right) - later:
            macs += math.prod(sizes[axis] for axis in both)
        left = both & later
    return macs


def terms(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """Of an einsum: one letter per axis of each operand and of the output; `...` becomes letters that no equation has.

    >>> terms("...ij, jk", [3, 2])
    (['①ij', 'jk'], '①ik')
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    hidden = [
        rank - len(term.replace("...", "")) if "..." in term else 0 for term, rank in zip(terms, ranks, strict=True)
    ]
    letters = [chr(0x2460 + i) for i in range(max(hidden))][::-1]  # counted from the last, as they broadcast
    named = [
        term.replace("...", "".join(letters[len(letters) - count :])) for term, count in zip(terms, hidden, strict=True)
    ]
    if not arrow:  # axes that stand once, in alphabetical order
        once = sorted(axis for axis in set("".join(terms)) - {"."} if left.count(axis) == 1)
        right = "..." + "".join(once)
    return named, right.replace("...", "".join(letters))
